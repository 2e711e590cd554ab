"""How fast depthwise convolution is: beside torch, and beside XLA's grouped convolution.

    python benchmarks/depthwise.py [--rounds N] [--out FILE]

Float32, on one thread each, at the maps of EfficientNet-Lite0 on a picture of 256x384 pixels. Contenders take
turns, and what is compared is the median of the processor's time, which another process does not lengthen.
Without torch (the extra ``compare``) its columns are absent.

Prints a table of milliseconds and ratios; saves JSON.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
os.environ["OMP_NUM_THREADS"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from spp_jax.depthwise import depthwise_conv

MAPS = (  # height, width, channels, kernel, stride
    (128, 192, 32, 3, 1),
    (128, 192, 96, 3, 2),
    (64, 96, 144, 3, 1),
    (64, 96, 144, 5, 2),
    (16, 24, 672, 5, 1),
    (16, 24, 480, 3, 1),
)
Contenders = dict[str, Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Options:
    """How fast depthwise convolution is, forward and backward."""

    rounds: int = 15
    """Turns that each contender takes; one of more than 20 ms takes a fifth of them."""
    batch: int = 2
    """Images."""
    out: Path | None = None
    """File for the figures, as JSON."""


def medians(contenders: Contenders, rounds: int) -> dict[str, float]:
    """Milliseconds of the processor for each, taken in turns, each after a run that is not measured."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, run in contenders.items():
            if taken[name] and min(taken[name]) > 20 and turn % 5:
                continue
            run()
            start = time.process_time()
            run()
            taken[name].append(1e3 * (time.process_time() - start))
    return {name: float(np.median(times)) for name, times in taken.items()}


def grouped(images, kernel, *, strides, padding):
    """XLA's own."""
    return jax.lax.conv_general_dilated(
        images,
        kernel[:, :, None],
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
    )


def in_jax(convolve: Callable, images, kernel, cotangent) -> Contenders:
    """Forward; and backward alone, to images and kernel."""
    forward = jax.jit(convolve)
    backward = jax.jit(lambda x, k, g: jax.vjp(convolve, x, k)[1](g))
    return {
        "forward": lambda: jax.block_until_ready(forward(images, kernel)),
        "backward": lambda: jax.block_until_ready(backward(images, kernel, cotangent)),
    }


def in_torch(images, kernel, cotangent, stride: int, edges: tuple[int, int]) -> Contenders:
    """The same, channels last, as torch is fastest."""
    import torch

    torch.set_num_threads(1)
    x, g = (torch.tensor(np.asarray(array)).permute(0, 3, 1, 2) for array in (images, cotangent))
    k = torch.tensor(np.asarray(kernel)).permute(2, 0, 1)[:, None].contiguous()
    even = edges[0] == edges[1]

    def padded():
        return x if even else torch.nn.functional.pad(x, edges + edges)

    pad, groups = [edges[0] if even else 0] * 2, k.shape[0]

    def forward():
        with torch.no_grad():
            return torch.nn.functional.conv2d(padded(), k, None, stride, pad, 1, groups)

    def backward():
        return torch.ops.aten.convolution_backward(
            g, padded(), k, None, [stride] * 2, pad, [1, 1], False, [0, 0], groups, [True, True, False]
        )

    return {"forward": forward, "backward": backward}


def measure(height: int, width: int, channels: int, cells: int, stride: int, options: Options) -> dict:
    """Milliseconds of every contender at one map."""
    before = (cells - stride) // 2
    edges = before, cells - stride - before
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(options.batch, height, width, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(cells, cells, channels)), jnp.float32)
    how = {"strides": (stride, stride), "padding": (edges, edges)}
    ours = functools.partial(depthwise_conv, **how)
    shape = jax.eval_shape(ours, images, kernel).shape
    cotangent = jnp.asarray(rng.normal(size=shape), jnp.float32)
    runs = {
        "spp_jax": in_jax(ours, images, kernel, cotangent),
        "grouped": in_jax(functools.partial(grouped, **how), images, kernel, cotangent),
    }
    if importlib.util.find_spec("torch"):
        runs["torch"] = in_torch(images, kernel, cotangent, stride, edges)

    def flat(*names: str) -> Contenders:
        return {f"{name} {way}": run for name in names if name in runs for way, run in runs[name].items()}

    # The grouped one by itself: it takes so much memory that the system hands out the others' anew each time.
    return medians(flat("spp_jax", "torch"), options.rounds) | medians(flat("grouped"), options.rounds // 3)


def main(options: Options) -> None:
    """Measure, print, save."""
    rows = {}
    for height, width, channels, cells, stride in MAPS:
        name = f"{height}x{width}x{channels} {cells}x{cells}" + (" stride 2" if stride > 1 else "")
        found = rows[name] = measure(height, width, channels, cells, stride, options)
        for way in ("forward", "backward"):
            ours = found[f"spp_jax {way}"]
            told = (
                f"{name:28} {way:9} {ours:7.2f} ms; grouped {found[f'grouped {way}'] / ours:6.1f} times that"
            )
            if f"torch {way}" in found:
                told += f"; {ours / found[f'torch {way}']:.2f} of torch's {found[f'torch {way}']:.2f}"
            print(told, flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
