"""How fast the op is: as a ratio to one plain max over the same tensor, and beside its rivals.

    python benchmarks/pooling.py [--rounds N] [--out FOLDER]

Everything is timed in turns in one process, medians. The op has run-time sizes that fill the map, its
slowest case; levels are (1, 2, 4). Rivals that are not installed are said to be absent: torch (three
adaptive pools and a concatenation), Keras 3 on JAX (the same), libtpu (the bytes of the program compiled
for a TPU v5e; no TPU needed). On a machine with a GPU, JAX and torch run there.

Prints tables; saves JSON and a plot.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if importlib.util.find_spec("libtpu"):
    # libtpu is there to compile for a TPU, not to run on one: keep jax from looking for it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from spp_jax import bin_edges, num_bins, pool_windows, spatial_pyramid_pool

LEVELS = (1, 2, 4)
SHAPES = (
    "16x13x13x256",
    "64x13x13x256",
    "8x32x48x256",
    "4x64x96x512",
    "1x128x192x512",
)
TPU_SHAPES = ((16, 128, 192, 512), (64, 48, 128, 512), (64, 64, 64, 512), (256, 32, 32, 512))
"""Maps whose traffic a TPU's compiler is asked for."""
Contenders = dict[str, Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Options:
    """How fast the op is."""

    rounds: int = 20
    """Turns that each contender takes; one that takes longer than 50 ms takes a fifth of them."""
    shapes: tuple[str, ...] = SHAPES
    """Maps to time, batch x height x width x channels."""
    reduce: str = "max"
    """The reduction that is timed: a name from spp_jax.pooling.reductions.REDUCTIONS. Rivals run for max."""
    windows: tuple[int, ...] = (256, 1000)
    """Windows of one 64x96x512 map."""
    out: Path | None = None
    """Folder for pooling.json and pooling.png."""


def medians(contenders: Contenders, rounds: int) -> dict[str, float]:
    """Seconds per contender, taken in turns, so that what else the machine does hits all alike.

    Before each measurement it rests, since threads of the contender before, torch's or JAX's, spin on for a
    while, and then runs once unmeasured. What takes a second or more is measured once.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, run in contenders.items():
            slowest = max(taken[name], default=0.0)
            if (slowest > 0.05 and turn % 5) or slowest > 1:
                continue
            time.sleep(0.005)
            run()
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in taken.items()}


def ready(function: Callable, *args) -> Callable[[], Any]:
    """Compiled, and run to its end."""
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*args))


def plain_max(x):
    """One max over the whole map: what reading the tensor costs."""
    return jnp.max(x, (1, 2))


def naive(x, sizes):
    """The pyramid as everyone writes it first: one mask per bin."""
    rows, columns = (jnp.arange(n)[:, None] for n in x.shape[1:3])
    pooled = []
    for n in LEVELS:
        (top, bottom), (left, right) = (bin_edges(sizes[:, axis], n) for axis in (0, 1))
        for i in range(n):
            for j in range(n):
                here = (rows >= top[:, i]) & (rows < bottom[:, i])
                there = (columns >= left[:, j]) & (columns < right[:, j])
                mask = here.T[:, :, None, None] & there.T[:, None, :, None]
                pooled.append(jnp.where(mask, x, -jnp.inf).max((1, 2)))
    return jnp.stack(pooled, 1)


def with_gradient(function: Callable, weights) -> Callable:
    """The function's value, and its gradient for the output's cotangent ``weights``."""

    def both(x, *args):
        value, pull = jax.vjp(lambda x: function(x, *args), x)
        return value, *pull(weights)

    return both


def torch_images(x: np.ndarray) -> dict[str, Any]:
    """The map as torch tensors, by memory order, where torch runs them."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    orders = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
    image = torch.tensor(x, device=device).permute(0, 3, 1, 2)
    return {order: image.contiguous(memory_format=memory) for order, memory in orders.items()}


def torch_pool(image):
    """Three adaptive pools and a concatenation: ``[batch, channels, bins]``."""
    import torch

    return torch.cat([torch.nn.functional.adaptive_max_pool2d(image, n).flatten(2) for n in LEVELS], 2)


def torch_ready(run: Callable, image) -> Callable[[], None]:
    """Run on an image, to its end."""
    import torch

    def run_to_end():
        run(image)
        if image.is_cuda:
            torch.cuda.synchronize()

    return run_to_end


def torch_contenders(x: np.ndarray, weights: np.ndarray) -> tuple[Contenders, Contenders]:
    """Forward, and forward and backward, in both memory orders."""
    import torch

    def run(image):
        with torch.no_grad():
            torch_pool(image)

    def run_both(image):
        torch_pool(image.detach().requires_grad_()).backward(cotangent)

    images = torch_images(x)
    cotangent = torch.tensor(weights).permute(0, 2, 1).contiguous().to(images["NCHW"].device)
    forward = {f"torch {order}": torch_ready(run, image) for order, image in images.items()}
    backward = {f"torch {order}": torch_ready(run_both, image) for order, image in images.items()}
    return forward, backward


def keras_pool(x):
    """Keras's adaptive pools, on its JAX backend."""
    import keras

    channels = x.shape[-1]
    pool = functools.partial(keras.ops.adaptive_max_pool, data_format="channels_last")
    parts = [jnp.asarray(pool(x, n)) for n in LEVELS]
    return jnp.concatenate([part.reshape(len(x), -1, channels) for part in parts], 1)


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def time_shape(shape: tuple[int, ...], options: Options) -> dict[str, dict[str, float]]:
    """Seconds, forward and with gradient, of every contender on one shape."""
    rng = np.random.default_rng(0)
    host = rng.normal(size=shape).astype(np.float32)
    x = jnp.asarray(host)
    sizes = jnp.tile(jnp.array(shape[1:3], jnp.int32), (shape[0], 1))
    host_weights = rng.normal(size=(shape[0], num_bins(LEVELS), shape[-1])).astype(np.float32)
    weights = jnp.asarray(host_weights)
    op = functools.partial(spatial_pyramid_pool, levels=LEVELS, reduce=options.reduce)
    forward = {
        "plain max": ready(plain_max, x),
        "copy": ready(jnp.negative, x),
        "op": ready(op, x, sizes),
        "op, sizes static": ready(op, x),
    }
    backward = {
        "plain max": ready(with_gradient(plain_max, weights[:, 0]), x),
        "op": ready(with_gradient(op, weights), x, sizes),
    }
    if options.reduce == "max":  # the rivals are of the max
        forward["naive masks"] = ready(naive, x, sizes)
        backward["naive masks"] = ready(with_gradient(naive, weights), x, sizes)
    if shape[0] % 2 == 0:
        # Of the same array, lest it be colder in the caches than the one that the others share.
        def twice(x, sizes):
            halves = (leaf.reshape(2, -1, *leaf.shape[1:]) for leaf in (x, sizes))
            return jax.vmap(op)(*halves)

        forward["op under vmap"] = ready(twice, x, sizes)
    if options.reduce == "max" and installed("torch"):
        torch_forward, torch_backward = torch_contenders(host, host_weights)
        forward |= torch_forward
        backward |= torch_backward
    if options.reduce == "max" and installed("keras"):
        forward["Keras on JAX"] = ready(keras_pool, x)
        backward["Keras on JAX"] = ready(with_gradient(keras_pool, weights), x)
    return {
        "forward": medians(forward, options.rounds),
        "forward and backward": medians(backward, options.rounds),
    }


def time_windows(options: Options, count: int) -> dict[str, float]:
    """Seconds for all windows of one map, and megabytes of temporaries."""
    rng = np.random.default_rng(0)
    height, width, channels = 64, 96, 512
    host = rng.normal(size=(1, height, width, channels)).astype(np.float32)
    x = jnp.asarray(host)
    extent = np.array([height, width])
    low = rng.integers(0, extent - 7, (count, 2))
    high = rng.integers(low + 8, extent + 1)
    windows = np.stack([low, high], 1)[None].astype(np.int32)
    every = jax.jit(functools.partial(pool_windows, levels=LEVELS, reduce=options.reduce))
    boxes = jnp.asarray(windows)
    tens = windows.copy()
    tens[..., 0] = np.repeat(windows[:, ::10, :, 0], 10, axis=1)[:, :count]
    in_tens = jnp.asarray(tens)
    single = [boxes[:, i : i + 1] for i in range(count)]
    contenders: Contenders = {
        "pool_windows": lambda: jax.block_until_ready(every(x, boxes)),
        "ten after ten with the same rows": lambda: jax.block_until_ready(every(x, in_tens)),
        "one jit call per window": lambda: jax.block_until_ready([every(x, box) for box in single]),
    }
    if options.reduce == "max" and installed("torch"):

        def slices(image):
            for (top, left), (bottom, right) in windows[0]:
                torch_pool(image[:, :, top:bottom, left:right])

        for order, image in torch_images(host).items():
            contenders[f"torch {order}, sliced"] = torch_ready(slices, image)
    cells = int((high - low).prod(1).sum())
    # What no form can be faster than: the cells of all windows at the speed at which the map is read.
    contenders["reading the map"] = ready(plain_max, x)
    times = medians(contenders, options.rounds)
    times["reading every window's cells"] = times["reading the map"] * cells / (height * width)
    memory = every.lower(x, boxes).compile().memory_analysis()
    return times | {"temporaries MB": memory.temp_size_in_bytes / 1e6 if memory else float("nan")}


def time_compilation(options: Options) -> dict[str, float]:
    """Seconds to trace, lower and compile, least of three, by map and by levels."""
    op = functools.partial(spatial_pyramid_pool, reduce=options.reduce)
    seconds = {}
    cases = [((2, n, n, 64), LEVELS) for n in (16, 64, 256)]
    cases += [((2, 64, 64, 64), levels) for levels in ((1,), (1, 2), LEVELS, (1, 2, 3, 6), (1, 2, 4, 8))]
    for shape, levels in dict.fromkeys(cases):
        x, sizes = jnp.zeros(shape), jnp.ones((shape[0], 2), jnp.int32)
        taken = []
        for _ in range(3):
            jax.clear_caches()
            start = time.perf_counter()
            jax.jit(functools.partial(op, levels=levels)).lower(x, sizes).compile()
            taken.append(time.perf_counter() - start)
        seconds[f"{shape[1]}x{shape[2]}, {num_bins(levels)} bins {levels}"] = min(taken)
    return seconds


def costs(lowered) -> dict[str, float]:
    """What the compiler says of a program: megabytes read and written, gigaflops, loops, custom calls."""
    compiled = lowered.compile()
    cost = compiled.cost_analysis() or {}
    text = compiled.as_text() or ""
    return {
        "MB": cost.get("bytes accessed", float("nan")) / 1e6,
        "GFLOP": cost.get("flops", float("nan")) / 1e9,
        "loops": text.count(" while("),
        "custom calls": text.count("custom_call_target"),
    }


def count_costs(options: Options, device: Any, shape: tuple[int, ...], dtype: Any) -> dict[str, dict]:
    """Costs of the op and of the plain max, forward and with gradient, compiled for a device."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    sizes = jax.ShapeDtypeStruct((shape[0], 2), jnp.int32, sharding=sharding)
    weights = jax.ShapeDtypeStruct((shape[0], num_bins(LEVELS), shape[-1]), dtype, sharding=sharding)
    whole = jax.ShapeDtypeStruct((shape[0], shape[-1]), dtype, sharding=sharding)
    op = functools.partial(spatial_pyramid_pool, levels=LEVELS, reduce=options.reduce)

    def op_both(x, sizes, weights):
        return with_gradient(op, weights)(x, sizes)

    def plain_both(x, whole):
        return with_gradient(plain_max, whole)(x)

    programs: dict[str, tuple[Callable, tuple]] = {
        "plain max": (plain_max, (x,)),
        "op": (op, (x, sizes)),
        "plain max, forward and backward": (plain_both, (x, whole)),
        "op, forward and backward": (op_both, (x, sizes, weights)),
    }
    return {name: costs(jax.jit(f).lower(*args)) for name, (f, args) in programs.items()}


def tpu_device() -> Any:
    """A device to compile for, or None without libtpu."""
    if not installed("libtpu"):
        return None
    from jax.experimental import topologies

    with contextlib.suppress(Exception):
        return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    return None


def print_times(shape: tuple[int, ...], times: dict[str, dict[str, float]]) -> None:
    size = np.prod(shape) * 4 / 1e6
    for kind, row in times.items():
        base = row["plain max"]
        print(f"\n{'x'.join(map(str, shape))} ({size:.1f} MB), {kind}: plain max {base * 1e3:.2f} ms")
        for name, seconds in row.items():
            print(
                f"    {name:24s}{seconds * 1e3:9.2f} ms {seconds / base:8.2f} of plain"
                f" {seconds / row['op']:8.2f} of the op"
            )


def draw(times: dict[str, dict[str, dict[str, float]]], reduce: str, path: Path) -> None:
    """Ratios to the plain max, per shape, on a logarithmic scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    kinds = ("forward", "forward and backward")
    names = list(dict.fromkeys(name for row in times.values() for kind in kinds for name in row[kind]))
    names = [name for name in names if name not in ("plain max", "op, sizes static")]
    for axes, kind in zip(figure.subplots(2, 1), kinds, strict=True):
        for place, name in enumerate(names):
            ratios = [row[kind].get(name, np.nan) / row[kind]["plain max"] for row in times.values()]
            where = np.arange(len(ratios)) + 0.8 * (place - (len(names) - 1) / 2) / len(names)
            axes.bar(where, ratios, 0.8 / len(names), label=name, color=f"C{place}")
        axes.axhline(1, color="grey", linestyle=":", label="one plain max over the same tensor")
        axes.set_xticks(range(len(times)), list(times))
        axes.set(yscale="log", ylabel="time, plain max = 1", title=f"{reduce} pyramid {LEVELS}, {kind}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)


def main() -> None:
    options = tyro.cli(Options)
    device = jax.devices()[0]
    print(f"{device.device_kind} ({os.cpu_count()} cores), jax {jax.__version__}, float32, {options.reduce}")
    for name in ("torch", "keras", "libtpu"):
        if not installed(name):
            print(f"{name}: absent")
    times = {}
    for name in options.shapes:
        shape = tuple(map(int, name.split("x")))
        times[name] = time_shape(shape, options)
        print_times(shape, times[name])
    windows = {}
    for count in options.windows:
        windows[count] = time_windows(options, count)
        print(f"\n{count} windows of 64x96x512:")
        for name, value in windows[count].items():
            unit = f"{value:9.1f}" if name.endswith("MB") else f"{value * 1e3:9.1f} ms"
            print(f"    {name:30s}{unit}")
    compilation = time_compilation(options)
    print("\nseconds to compile:")
    for name, seconds in compilation.items():
        print(f"    {name:36s}{seconds:6.2f}")
    programs = {str(device.platform): count_costs(options, device, (4, 64, 96, 512), jnp.float32)}
    if tpu := tpu_device():
        for shape in TPU_SHAPES:
            name = f"TPU v5e, {'x'.join(map(str, shape))} bfloat16"
            programs[name] = count_costs(options, tpu, shape, jnp.bfloat16)
    for name, rows in programs.items():
        print(f"\ncost_analysis, {name}:")
        for program, row in rows.items():
            print(f"    {program:34s}" + "".join(f"{value:12.1f} {what}" for what, value in row.items()))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        described = {
            "version": 2,
            "jax": jax.__version__,
            "device": device.device_kind,
            "cores": os.cpu_count(),
            "options": dataclasses.asdict(options),
            "seconds": times,
            "windows": windows,
            "compilation": compilation,
            "programs": programs,
        }
        (options.out / "pooling.json").write_text(json.dumps(described, indent=2, default=str) + "\n")
        draw(times, options.reduce, options.out / "pooling.png")


if __name__ == "__main__":
    main()
