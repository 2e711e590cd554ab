"""How exact the padded batch is: its outputs and gradients against those of each image alone.

    python benchmarks/exactness.py [--model NAME] [--images N] [--out FOLDER]

For random sizes, the largest relative error per tensor (logits, input gradients, parameter gradients):
padded against alone in float64, padded against alone in float32, and, to compare with, what rounding
alone does: the lone image in float32 against itself in float64. Prints a table; saves JSON and a plot.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import tyro
from flax import nnx

from spp_jax import create_model
from spp_jax.testing import lone_tensors, padded_tensors, relative_errors

KINDS = {"output": "logits", "input gradient": "input gradients", "gradient of": "parameter gradients"}


@dataclasses.dataclass(frozen=True)
class Options:
    """How exact the padded batch is."""

    model: str = "compact"
    """Network: a name that spp_jax.list_models() gives."""
    images: int = 50
    """Images of random sizes, in batches of five."""
    longest: int = 96
    """Pixels of the longest side."""
    seed: int = 0
    """Of sizes, pixels and parameters."""
    out: Path | None = None
    """Folder for exactness.json and exactness.png."""


def measure(options: Options) -> dict[str, dict[str, float]]:
    """The largest relative error by comparison and kind of tensor."""
    rng = np.random.default_rng(options.seed)
    model = create_model(options.model, rngs=nnx.Rngs(options.seed))
    last = getattr(model.head, "logits", None)
    if last is not None and not last.kernel[...].any():  # a head that starts at zero hides all before it
        last.kernel[...] = rng.normal(size=last.kernel.shape).astype(np.float32)
    model.eval()
    sizes = [
        [int(rng.integers(low, options.longest + 1)) for low in model.min_size] for _ in range(options.images)
    ]
    worst: dict[str, dict[str, float]] = {}
    for first in range(0, len(sizes), 5):
        images = [rng.uniform(size=(*size, 3)).astype(np.float32) for size in sizes[first : first + 5]]
        alone = {dtype: lone_tensors(model, images, dtype=dtype) for dtype in (np.float64, np.float32)}
        padded = {dtype: padded_tensors(model, images, dtype=dtype) for dtype in (np.float64, np.float32)}
        for comparison, (found, expected) in {
            "padded against alone, float64": (padded[np.float64], alone[np.float64]),
            "padded against alone, float32": (padded[np.float32], alone[np.float32]),
            "alone, float32 against float64": (alone[np.float32], alone[np.float64]),
        }.items():
            row = worst.setdefault(comparison, dict.fromkeys(KINDS.values(), 0.0))
            for name, error in relative_errors(found, expected).items():
                kind = next(kind for start, kind in KINDS.items() if name.startswith(start))
                row[kind] = float(np.maximum(row[kind], error))  # which keeps NaN
    return worst


def draw(worst: dict[str, dict[str, float]], path: Path) -> None:
    """The errors as bars, on a logarithmic scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, (comparison, row) in enumerate(worst.items()):
        axes.bar(
            np.arange(len(row)) + 0.27 * (place - 1),
            [max(v, 1e-17) for v in row.values()],
            0.25,
            label=comparison,
        )
    axes.set_xticks(range(len(KINDS)), list(KINDS.values()))
    axes.set(yscale="log", ylabel="largest relative error", title="Padded batch against the image alone")
    axes.axhline(1e-9, color="grey", linestyle=":", label="promised in float64")
    axes.set_ylim(top=100)
    axes.legend(fontsize="small", loc="upper right")
    figure.savefig(path, dpi=120)


def main() -> None:
    options = tyro.cli(Options)
    worst = measure(options)
    print(
        f"{options.model}, {options.images} random sizes, {jax.devices()[0].device_kind}, "
        f"jax {jax.__version__}\n"
    )
    print(f"{'largest relative error':32s}" + "".join(f"{kind:>21s}" for kind in KINDS.values()))
    for comparison, row in worst.items():
        print(f"{comparison:32s}" + "".join(f"{error:21.1e}" for error in row.values()))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        described = {
            "version": 1,
            "jax": jax.__version__,
            "options": dataclasses.asdict(options),
            "errors": worst,
        }
        (options.out / "exactness.json").write_text(json.dumps(described, indent=2, default=str) + "\n")
        draw(worst, options.out / "exactness.png")


if __name__ == "__main__":
    main()
