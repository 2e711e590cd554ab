"""What leaving convolutions to Eigen is worth on a CPU: programs as XLA compiles them alone, and as we do.

    python benchmarks/convolutions.py [--rounds N] [--out FILE]

The forward pass of judges at one photograph, and training steps of batches. Each program is compiled twice,
without and with :func:`spp_jax.compilation.compiler_options`. The two take turns, and what is compared is the
median of the ratios of their turns.

Prints a table; saves JSON.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from spp_jax import Bucket, Padded, Scorer, create_model
from spp_jax.compilation import compiler_options, data_mesh
from spp_jax.config import RunConfig
from spp_jax.data.loading import abstract_batch
from spp_jax.training import create_training, train_step


@dataclasses.dataclass(frozen=True)
class Options:
    """What leaving convolutions to Eigen is worth on a CPU."""

    rounds: int = 9
    """Turns."""
    score: tuple[str, ...] = ("compact", "quality", "resnet18")
    """Networks, or judges that ship, whose forward pass is timed."""
    step: tuple[str, ...] = ("compact", "resnet18")
    """Networks whose training step is timed."""
    shape: tuple[int, int] = (400, 512)
    """Height and width of the photographs: one of them scored, two in a step."""
    out: Path | None = None
    """File for the figures, as JSON."""


def filled(like: Any, shape: tuple[int, int]) -> Any:
    """A batch of noise, of one size."""
    rng = np.random.default_rng(0)

    def noise(leaf: Any) -> jax.Array:
        return jnp.asarray(rng.integers(0, 256, leaf.shape).astype(leaf.dtype))

    images = like if isinstance(like, Padded) else like.images
    sizes = jnp.asarray(np.broadcast_to(np.asarray(shape, np.int32), images.sizes.shape))
    turned = None if images.turned is None else jnp.asarray(False)
    images = Padded(noise(images.values), sizes, turned)
    if isinstance(like, Padded):
        return images
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), like)._replace(images=images)


def scoring(name: str, options: Options) -> tuple[Any, tuple]:
    """The lowered forward pass for one photograph, and its arguments."""
    if name in ("compact", "quality"):
        scorer = Scorer.from_pretrained(name)
    else:
        scorer = Scorer(create_model(name, rngs=nnx.Rngs(0)), RunConfig(model=name))
    like = scorer._arguments(Bucket(options.shape, 1, scorer.both_orientations))
    images = filled(like[1], options.shape)
    return jax.jit(scorer.forward).lower(*like), (scorer.leaves, images)


def stepping(name: str, options: Options) -> tuple[Any, tuple]:
    """The lowered training step for two photographs, and its arguments."""
    model = create_model(name, rngs=nnx.Rngs(0))
    recipe, state = create_training(model, "huber", optax.adamw(1e-3), total_updates=10, mean_batch=2)
    batch = filled(abstract_batch(Bucket(options.shape, 2), data_mesh()), options.shape)
    return jax.jit(functools.partial(train_step, recipe)).lower(state, batch), (state, batch)


def compared(lowered: Any, arguments: tuple, rounds: int) -> dict[str, float]:
    """Milliseconds of both, the ratio, and seconds of processor time that compiling took."""
    calls: dict[str, Callable] = {}
    found: dict[str, float] = {}
    for name, told in {"by itself": None, "told": compiler_options(jax.default_backend(), {})}.items():
        began = time.process_time()
        calls[name] = lowered.compile(compiler_options=told)
        found[f"{name}, compiling s"] = time.process_time() - began
        jax.block_until_ready(calls[name](*arguments))
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call(*arguments))
            took[name].append(time.perf_counter() - began)
    found |= {f"{name}, ms": 1e3 * float(np.median(times)) for name, times in took.items()}
    return found | {"ratio": float(np.median(np.divide(took["told"], took["by itself"])))}


def main() -> None:
    options = tyro.cli(Options)
    jax.config.update("jax_enable_compilation_cache", False)
    rows = {f"scoring, {name}": (scoring, name) for name in options.score}
    rows |= {f"a step, {name}": (stepping, name) for name in options.step}
    figures: dict[str, dict[str, float]] = {}
    for row, (lower, name) in rows.items():
        figures[row] = compared(*lower(name, options), options.rounds)
        if len(figures) == 1:
            print(f"jax {jax.__version__}, {'x'.join(map(str, options.shape))}")
            print("| | " + " | ".join(figures[row]) + " |\n|---" + "|---" * len(figures[row]) + "|")
        print(
            f"| {row} | " + " | ".join(f"{value:.3g}" for value in figures[row].values()) + " |", flush=True
        )
    if options.out:
        options.out.write_text(json.dumps({"jax": jax.__version__, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
