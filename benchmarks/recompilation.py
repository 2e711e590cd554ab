"""What mixed shapes cost: one epoch of training under each way of feeding them to XLA.

    python benchmarks/recompilation.py [--collection NAME | --sizes FILE] [--step MODULE:FUNCTION] [--full]

Pictures (noise) of a collection's sizes are trained on for an epoch: cold (nothing compiled), again warm in
the same process, and in a new process with the programs on disk. Every row has processes of its own.
Prints a table; saves JSON and a plot.

The collections: `default`, the sizes of the embedded data set; `ava`, a mixture in the style of AVA: longest
side 800, 640, 1024, 600 or 500 pixels (40, 30, 10, 10, 10 %), 28 % portraits, the logarithm of the aspect
ratio normal with mean 0.35 and deviation 0.2; or a FILE of lines `height,width,count`.

FUNCTION takes nothing and returns `(state, step)` or `(state, step, logits)`: `step(state, batch)` gives
`(state, anything)`, and is jitted here; `batch` is a `spp_jax.data.loading.Batch`. With
`logits(state, images)`, images a `spp_jax.Padded`, the last column is measured.
"""

import dataclasses
import importlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from photo_sizes import read_sizes, scaled
from PIL import Image

from spp_jax import BucketPlan, Padded, plan_buckets
from spp_jax.buckets import Bucket
from spp_jax.compilation import (
    BucketExecutables,
    abstract,
    data_mesh,
    placements,
    replicated,
    use_compilation_cache,
)
from spp_jax.config import RunConfig
from spp_jax.data.loading import Batch, load_batches
from spp_jax.data.records import Records
from spp_jax.data.schedule import BatchSpec, in_order
from spp_jax.errors import UsageError
from spp_jax.training import configured_training, train_step

VERSION = 1
PROGRESS = "progress.json"
PER_SHAPE, LARGEST, POWERS = "one jit per shape", "pad to the largest", "powers of two"
WARP, EXPORT, NAIVE, MIXED = "warp to 224", "polymorphic export", "12 planned, no masks", "mixed or one shape"


@dataclasses.dataclass(frozen=True)
class Options:
    """What mixed shapes cost."""

    collection: str = "default"
    """Whose sizes: default or ava."""
    sizes: Path | None = None
    """Sizes from a file instead: lines of height,width,count after a heading."""
    shapes: int = 24
    """How many distinct shapes are drawn from the collection."""
    images: int = 120
    """Pictures in an epoch, of these shapes."""
    max_side: int = 384
    """Larger pictures are scaled down to this longest side."""
    buckets: tuple[int, ...] = (4, 8, 12)
    """Numbers of planned buckets."""
    pixels_per_step: int = 300_000
    """Padded pixels of a batch."""
    step: str = ""
    """Your own step, MODULE:FUNCTION, instead of that of --model."""
    model: str = "compact"
    """Network whose training step is measured."""
    rows: tuple[str, ...] = ()
    """Only these rows; their names are those of the table."""
    seed: int = 0
    """Of what is drawn."""
    full: bool = False
    """200 shapes, 1,000 pictures, longest side 1,024, and 4, 8, 12, 16 and 24 buckets."""
    out: Path | None = None
    """Folder for recompilation.json and recompilation.png."""

    def __post_init__(self):
        if self.full:
            larger = {"shapes": 200, "images": 1000, "max_side": 1024, "buckets": (4, 8, 12, 16, 24)}
            for name, value in larger.items():
                object.__setattr__(self, name, value)


def draw_sizes(options: Options) -> np.ndarray:
    """The sizes of an epoch's pictures, int64 ``[images, 2]``, of exactly so many distinct shapes."""
    rng = np.random.default_rng(options.seed)
    if options.sizes or options.collection == "default":
        all_sizes = np.repeat(*read_sizes(options.sizes), axis=0)
    elif options.collection == "ava":
        long = rng.choice([800, 640, 1024, 600, 500], 20_000, p=[0.4, 0.3, 0.1, 0.1, 0.1])
        short = np.round(long / np.exp(np.abs(rng.normal(0.35, 0.2, len(long))))).astype(np.int64)
        portrait = rng.random(len(long)) < 0.28
        all_sizes = np.stack([np.where(portrait, long, short), np.where(portrait, short, long)], axis=1)
    else:
        raise UsageError(f"--collection {options.collection}: known are default and ava")
    all_sizes = np.maximum(scaled(all_sizes, options.max_side), 16)
    distinct, counts = np.unique(all_sizes, axis=0, return_counts=True)
    if len(distinct) < options.shapes or options.images < options.shapes:
        raise UsageError(f"{options.shapes} shapes: there are {len(distinct)}, and {options.images} images")
    chosen = rng.choice(len(distinct), options.shapes, replace=False, p=counts / counts.sum())
    share = counts[chosen] / counts[chosen].sum()
    drawn = np.concatenate([chosen, rng.choice(chosen, options.images - options.shapes, p=share)])
    return distinct[rng.permutation(drawn)]


def strategy(row: str, sizes: np.ndarray, options: Options) -> tuple[np.ndarray, BucketPlan]:
    """The sizes at which pictures are fed, and the buckets of these."""
    pixels = options.pixels_per_step
    if row in (PER_SHAPE, EXPORT):
        return sizes, plan_buckets(sizes, len(sizes), multiple=1, pixels_per_step=pixels)
    if row == LARGEST:
        return sizes, plan_buckets(sizes, 1, pixels_per_step=pixels)
    if row == POWERS:
        powers = 2 ** np.ceil(np.log2(sizes)).astype(np.int64)
        return sizes, plan_buckets(powers, len(powers), multiple=1, pixels_per_step=pixels)
    if row == WARP:
        sizes = np.full_like(sizes, 224)
        return sizes, plan_buckets(sizes, 1, pixels_per_step=pixels)
    both = not options.step  # another's step need not know of turned pictures
    return sizes, plan_buckets(sizes, int(row.split()[0]), pixels_per_step=pixels, both_orientations=both)


def picture(index: int, size: np.ndarray) -> np.ndarray:
    """Smooth noise, uint8 ``[height, width, 3]``, the same for an index and size wherever it is asked for."""
    height, width = map(int, size)
    coarse = np.random.default_rng(index).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def make_specs(row: str, sizes: np.ndarray, options: Options) -> list[BatchSpec]:
    """An epoch; a bucket of fewer pictures than fill a batch has batches of just these."""
    fed, plan = strategy(row, sizes, options)
    homes = plan.assign(fed)
    members = np.bincount(homes, minlength=len(plan.buckets))
    buckets = (
        bucket._replace(batch_size=max(1, min(bucket.batch_size, int(most))))
        for bucket, most in zip(plan.buckets, members, strict=True)
    )
    return in_order(fed, BucketPlan(tuple(buckets)))


def make_batches(row: str, sizes: np.ndarray, options: Options) -> list[tuple[Bucket, Batch]]:
    def fed(index: int) -> Any:
        pixels = picture(index, sizes[index])
        return np.asarray(Image.fromarray(pixels).resize((224, 224))) if row == WARP else pixels

    names = tuple(map(str, range(len(sizes))))
    scores = np.linspace(0, 1, len(sizes)).astype(np.float32)
    records = Records(names, strategy(row, sizes, options)[0], fed, scores, scores >= 0.5, names)
    batches = []
    for spec, batch, _ in load_batches(records, make_specs(row, sizes, options)):
        if row == NAIVE:
            everything = dataclasses.replace(Padded.whole(batch.images.values), turned=batch.images.turned)
            batch = batch._replace(images=everything)
        batches.append((spec.bucket, batch))
    return batches


def make_step(options: Options) -> tuple[Any, Callable, Callable | None]:
    """State, step, and logits: the user's, or the training step of a model."""
    if options.step:
        module, _, name = options.step.partition(":")
        sys.path.insert(0, os.getcwd())
        made = getattr(importlib.import_module(module), name)()
        return (*made, None) if len(made) == 2 else made
    config = RunConfig(model=options.model)
    recipe, state = configured_training(config, 1000, 8.0)
    # The head starts at zero: every logit would be 0, padded or not.
    params = nnx.to_pure_dict(state.params)
    last = params["head"]["logits"]
    last["kernel"] = jax.random.normal(jax.random.key(0), last["kernel"].shape)
    nnx.replace_by_pure_dict(state.params, params)

    def step(state, batch):
        return train_step(recipe, state, batch)

    def logits(state, images):
        model = nnx.merge(recipe.graph, state.params, state.stats, copy=True)
        model.eval()
        return model(images)[:, 0]

    return state, step, logits


KINDS = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",
    "/jax/compilation_cache/cache_retrieval_time_sec": "reading",
}


class Clock:
    """Seconds by what JAX does, of the program named `step`, from its own events."""

    def __init__(self):
        self.seconds = dict.fromkeys(KINDS.values(), 0.0)
        self.programs = 0
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)

    def _on_duration(self, event: str, duration_secs: float, **details) -> None:
        kind = KINDS.get(event)
        named = str(details.get("fun_name", "")).removeprefix("jit(").removesuffix(")") == "step"
        if kind and (named or kind == "reading"):
            self.seconds[kind] += duration_secs
            self.programs += kind == "compiling"

    def done(self) -> dict[str, float]:
        """So far: programs, and seconds by kind."""
        seconds = dict(self.seconds)
        seconds["compiling"] = max(0.0, seconds["compiling"] - seconds["reading"])
        return {"programs": self.programs, **seconds}


def exported(step: Callable, state: Any, batches: list[tuple[Bucket, Batch]]) -> Callable:
    """One export for every height, width and batch size; raises what JAX says where it cannot."""
    constraints = ["height >= 16", "width >= 16"]
    rows, height, width = jax.export.symbolic_shape("rows, height, width", constraints=constraints)
    _, batch = batches[0]

    def symbolic(x) -> jax.ShapeDtypeStruct:
        shape = (rows, height, width, 3) if x.ndim == 4 else (rows, *x.shape[1:])  # never turned
        return jax.ShapeDtypeStruct(shape, x.dtype)

    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    program = jax.export.export(jax.jit(step))(like, jax.tree.map(symbolic, batch))

    def step_of_export(state, batch):
        return program.call(state, batch)

    step_of_export.__name__ = "step"
    return step_of_export


def programs_of(step: Callable, state: Any, batches: dict[Bucket, Batch]) -> BucketExecutables:
    """The step for each bucket, on one device."""
    mesh = data_mesh(jax.devices()[:1])

    def placed(tree):
        return abstract(tree, placements(tree, mesh))

    like = placed(state)
    return BucketExecutables(
        step,
        lambda bucket: (like, placed(batches[bucket])),
        donate_argnums=0,
        out_shardings=replicated(mesh),
    )


def run_row(row: str, cache: str, options: Options) -> dict[str, Any]:
    """One row in this process: an epoch from the start, and one warm."""
    use_compilation_cache(cache)
    sizes = draw_sizes(options)
    if row == MIXED:
        return mixed_or_one_shape(sizes, options)
    if row == NAIVE:
        Padded.filled = lambda self, value=0: self.values  # the padding is left as it comes
    batches = make_batches(row, sizes, options)
    state, step, logits = make_step(options)
    jax.block_until_ready(state)
    clock = Clock()
    start = time.perf_counter()
    if row == EXPORT:
        step = exported(step, state, batches)
    everywhere = replicated(data_mesh(jax.devices()[:1]))
    state, of_bucket = jax.device_put(state, everywhere), dict(batches)
    executables = programs_of(step, state, of_bucket)
    if "planned" in row:  # the others compile as they go
        for _ in executables.compile_all(of_bucket):
            pass

    def epoch(state):
        for bucket, batch in batches:
            state, _ = executables[bucket].call(state, jax.device_put(batch, everywhere))
            so_far = {"programs": len(executables), "seconds": time.perf_counter() - start}
            (Path(cache) / PROGRESS).write_text(json.dumps(so_far))  # should the process die
        return jax.block_until_ready(state)

    state = epoch(state)
    first = time.perf_counter() - start
    compilations = clock.done()
    warm = []
    for _ in range(3):
        start = time.perf_counter()
        state = epoch(state)
        warm.append(time.perf_counter() - start)
    stats = jax.devices()[0].memory_stats() or {}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    computed = sum(bucket.pixels for bucket, _ in batches)
    result = {
        **compilations,
        "first_epoch": first,
        "warm_epoch": float(np.median(warm)),
        "steps": len(batches),
        "padded": 1 - float(sizes.prod(1).sum() / computed) if row != WARP else None,
        "peak_bytes": stats.get("peak_bytes_in_use") or resident,
        "device": jax.devices()[0].device_kind,
    }
    if logits:
        result["difference"] = difference(batches, sizes, row, options, state, logits)
    return result


def difference(batches, sizes, row: str, options: Options, state, logits: Callable, most: int = 6) -> float:
    """Largest difference of a picture's logit from that of it alone, relative to the largest logit."""
    seen: dict[int, float] = {}
    run = jax.jit(logits)
    for spec, (_, batch) in zip(make_specs(row, sizes, options), batches, strict=True):
        if len(seen) < most:
            found = np.asarray(run(state, batch.images))
            seen.update({index: float(found[place]) for place, index in enumerate(spec.rows[:2])})
    alone = [
        float(run(state, Padded.whole(jnp.asarray(picture(index, sizes[index])[None])))[0]) for index in seen
    ]
    return float(np.max(np.abs(np.array(list(seen.values())) - alone)) / np.max(np.abs(alone)))


def mixed_or_one_shape(sizes: np.ndarray, options: Options) -> dict[str, Any]:
    """Padded pixels per second: planned buckets, and one shape of as many pixels a step, in turns."""
    mixed = make_batches(f"{max(options.buckets)} planned", sizes, options)
    side = int(np.sqrt(np.median([np.prod(bucket.shape) for bucket, _ in mixed])) // 8 * 8)
    fixed = make_batches(LARGEST, np.full((options.images, 2), side), options)
    state, step, _ = make_step(options)
    jitted = jax.jit(step)
    contenders = {"mixed": mixed, "fixed": fixed}
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(8):
        for name, batches in contenders.items():
            start = time.perf_counter()
            for _, batch in batches:
                jax.block_until_ready(jitted(state, jax.device_put(batch)))
            if turn:  # the first compiles
                pixels = sum(bucket.pixels for bucket, _ in batches)
                rates[name].append(pixels / (time.perf_counter() - start))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    return {**medians, "ratio": medians["mixed"] / medians["fixed"], "side": side}


def measure(row: str, options: Options) -> dict[str, Any]:
    """A row in processes of its own: cold, then with the programs on disk."""
    as_text = json.dumps(dataclasses.asdict(options), default=str)
    with tempfile.TemporaryDirectory() as cache:
        runs = []
        for _ in range(1 if row == MIXED else 2):
            command = [sys.executable, __file__, "--row", row, cache, as_text]
            environment = {**os.environ, "JAX_TRACEBACK_FILTERING": "off"}
            child = subprocess.run(command, capture_output=True, text=True, env=environment)
            if child.returncode:
                raised = re.findall(r"^[\w.]+: .+", child.stderr, re.MULTILINE)
                if raised:
                    return {"error": raised[-1]}
                so_far = json.loads((Path(cache) / PROGRESS).read_text())
                return {
                    "error": f"the process died (status {child.returncode}) with {so_far['programs']} "
                    f"programs after {so_far['seconds']:.0f} s",
                    "died": so_far,
                    **({"cold": runs[0]} if runs else {}),
                }
            runs.append(json.loads(child.stdout.splitlines()[-1]))
    if row == MIXED:
        return runs[0]
    return {"cold": runs[0], "disk": runs[1]}


def break_even(result: dict, base: dict, images: int) -> float | None:
    """Pictures until compiling and training take less than padding all to the largest; None: never."""
    overhead = [r["cold"]["first_epoch"] - r["cold"]["warm_epoch"] for r in (result, base)]
    saved = (base["cold"]["warm_epoch"] - result["cold"]["warm_epoch"]) / images
    return max(0.0, (overhead[0] - overhead[1]) / saved) if saved > 0 else None


def columns(result: dict[str, Any], options: Options, true_pixels: int) -> dict[str, str]:
    """What the table says of a row, by heading."""
    cold, disk = result["cold"], result.get("disk")
    warm, after = cold["warm_epoch"], result.get("pays_after_steps")
    return {
        "programs": f"{cold['programs']}",
        "trace s": f"{cold['tracing']:.1f}",
        "lower s": f"{cold['lowering']:.1f}",
        "compile s": f"{cold['compiling']:.1f}",
        "read s": f"{disk['reading']:.1f}" if disk else "died",
        "cold s": f"{cold['first_epoch']:.1f}",
        "on disk s": f"{disk['first_epoch']:.1f}" if disk else "died",
        "warm s": f"{warm:.1f}",
        "padded": "warped" if cold["padded"] is None else f"{cold['padded']:.1%}",
        "images/s": f"{options.images / warm:.1f}",
        "true Mpx/s": f"{true_pixels / warm / 1e6:.2f}",
        "peak GB": f"{cold['peak_bytes'] / 1e9:.2f}",
        "pays after": "never" if after is None else f"{after:.0f} steps",
        "off by": f"{cold['difference']:.0e}" if "difference" in cold else "-",
    }


def print_table(results: dict[str, dict], options: Options, true_pixels: int) -> None:
    measured = {row: columns(r, options, true_pixels) for row, r in results.items() if "cold" in r}
    for number, (row, values) in enumerate(measured.items()):
        if not number:
            print(f"{'strategy':22s}" + "".join(f"{heading:>12s}" for heading in values))
        print(f"{row:22s}" + "".join(f"{value:>12s}" for value in values.values()))
    for row, result in results.items():
        if "error" in result:
            print(f"{row}: {result['error'][:400]}")
    if "ratio" in results.get(MIXED, {}):
        mixed = results[MIXED]
        print(
            f"\npadded pixels/s in mixed shapes: {mixed['mixed'] / 1e6:.2f} M; in one of {mixed['side']}x"
            f"{mixed['side']}: {mixed['fixed'] / 1e6:.2f} M; ratio {mixed['ratio']:.3f}"
        )


def draw(results: dict[str, dict], options: Options, path: Path) -> None:
    """Seconds of the first epoch, cold and from disk, beside the warm one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in results if "disk" in results[row]]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    series = {
        "cold": [results[row]["cold"]["first_epoch"] for row in rows],
        "programs on disk": [results[row]["disk"]["first_epoch"] for row in rows],
        "warm": [results[row]["cold"]["warm_epoch"] for row in rows],
    }
    for place, (label, values) in enumerate(series.items()):
        axes.barh(np.arange(len(rows)) + 0.27 * (place - 1), values, 0.25, label=label)
    axes.set_yticks(range(len(rows)), [f"{row}\n{results[row]['cold']['programs']} programs" for row in rows])
    axes.invert_yaxis()
    axes.set(
        xscale="log",
        xlabel="seconds for an epoch",
        title=f"{options.images} pictures of {options.shapes} shapes",
    )
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def run() -> int:
    if sys.argv[1:2] == ["--row"]:
        row, cache, text = sys.argv[2:]
        fields = {**json.loads(text), "full": False}
        fields |= {name: tuple(fields[name]) for name in ("buckets", "rows")}
        fields |= {name: Path(fields[name]) for name in ("sizes", "out") if fields[name]}
        print(json.dumps(run_row(row, cache, Options(**fields))))
        return 0
    options = tyro.cli(Options)
    sizes = draw_sizes(options)
    planned = [f"{k} planned" for k in options.buckets]
    rows = [PER_SHAPE, LARGEST, POWERS, *planned, WARP, EXPORT, NAIVE, MIXED]
    if unknown := set(options.rows) - set(rows):
        raise UsageError(f"--rows {', '.join(unknown)}: known are {', '.join(rows)}")
    results: dict[str, dict] = {}
    for row in options.rows or rows:
        print(f"measuring: {row}", file=sys.stderr)
        results[row] = measure(row, options)
    base = results.get(LARGEST, {})
    for result in results.values():
        if "cold" in result and "cold" in base:
            after = break_even(result, base, options.images)
            per_step = options.images / result["cold"]["steps"]
            result["pays_after_steps"] = None if after is None else after / per_step
    environment = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": next((r["cold"]["device"] for r in results.values() if "cold" in r), None),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
    }
    true_pixels = int(sizes.prod(axis=1).sum())
    print(
        f"\n{options.images} pictures of {options.shapes} shapes ({options.sizes or options.collection}), "
        f"{true_pixels / 1e6:.1f} Mpx; {options.step or options.model}; {environment['device']}, jax "
        f"{jax.__version__}\n"
    )
    print_table(results, options, true_pixels)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        described = {
            "version": VERSION,
            "environment": environment,
            "options": dataclasses.asdict(options),
            "true_pixels": true_pixels,
            "rows": results,
        }
        (options.out / "recompilation.json").write_text(json.dumps(described, indent=2, default=str) + "\n")
        draw(results, options, options.out / "recompilation.png")
    return 1 if any("error" in result for row, result in results.items() if row != EXPORT) else 0


def main() -> int:
    try:
        return run()
    except (UsageError, OSError, ValueError) as error:
        print(f"recompilation.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
