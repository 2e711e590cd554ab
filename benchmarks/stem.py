"""What `compact`'s step costs for each padded pixel: its stem as a convolution, as a product, and in torch.

    python benchmarks/stem.py [--rounds N] [--out FILE]

The gradient of all parameters for a batch of equal pictures, which torch is given one after the other; the
forward pass alone; and the stem alone. Float32, on one thread each. Contenders take turns, and what is
compared is the median of the processor's time, which another process does not lengthen. Without torch (the
extra ``compare``) its column is absent.

Prints a table of milliseconds and ratios; saves JSON.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import depthwise  # before jax: it asks for one thread
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from all import installed
from flax import nnx
from jax import lax
from throughput import torch_compact

from spp_jax import Padded, create_model


@dataclasses.dataclass(frozen=True)
class Options:
    """What a step of `compact` costs for each padded pixel."""

    rounds: int = 20
    """Turns that each contender takes; one of more than 20 ms takes a fifth of them."""
    shape: tuple[int, int, int] = (2, 400, 496)
    """Pictures, and their height and width."""
    out: Path | None = None
    """File for the figures, as JSON."""


def ours(pixels: np.ndarray, *, plain: bool) -> dict[str, Callable[[], Any]]:
    """Gradient, forward pass and stem; ``plain``: the stem by XLA's own convolution."""
    model = create_model("compact", rngs=nnx.Rngs(0))
    stem = model.body.stages[0].conv
    if plain:
        stem.conv_general_dilated = lax.conv_general_dilated
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    images = Padded.whole(jnp.asarray(pixels))
    stem_graph, stem_params = nnx.split(stem)
    floats = images.map(lambda values: values / 255)

    def total(params, images):
        return nnx.merge(graph, params, rest, copy=True)(images).sum()

    def stem_alone(params, images):
        return nnx.merge(stem_graph, params)(images).values

    def ready(function: Callable, *args) -> Callable[[], Any]:
        compiled = jax.jit(function).lower(*args).compile()
        return lambda: jax.block_until_ready(compiled(*args))

    return {
        "gradient": ready(jax.grad(total), params, images),
        "forward": ready(total, params, images),
        "stem": ready(stem_alone, stem_params, floats),
    }


def in_torch(pixels: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The same, picture by picture, channels last."""
    import torch

    torch.set_num_threads(1)
    model = torch_compact().to(memory_format=torch.channels_last)
    pictures = [torch.from_numpy(picture)[None].permute(0, 3, 1, 2) for picture in pixels]

    def gradient():
        model.zero_grad()
        for picture in pictures:
            model(picture.float() / 255 * 4 - 2).sum().backward()

    @torch.no_grad()
    def forward():
        for picture in pictures:
            model(picture.float() / 255 * 4 - 2)

    floats = [(picture / 255).contiguous(memory_format=torch.channels_last) for picture in pictures]

    @torch.no_grad()
    def stem():
        for picture in floats:
            model.stem(picture)

    return {"gradient": gradient, "forward": forward, "stem": stem}


def main() -> None:
    options = tyro.cli(Options)
    pixels = np.random.default_rng(0).integers(0, 256, (*options.shape, 3), np.uint8)
    ways = {"product": ours(pixels, plain=False), "convolution": ours(pixels, plain=True)}
    if installed("torch"):
        ways["torch"] = in_torch(pixels)
    else:
        print("torch: absent")
    figures = {}
    print(f"jax {jax.__version__}, {'x'.join(map(str, options.shape))}, milliseconds (of the product's)")
    print(f"{'':10s}" + "".join(f"{name:>20s}" for name in ways))
    for part in ways["product"]:
        row = depthwise.medians({name: way[part] for name, way in ways.items()}, options.rounds)
        figures[part] = row
        cells = (f"{taken:12.2f} ({taken / row['product']:.2f})" for taken in row.values())
        print(f"{part:10s}" + "".join(f"{cell:>20s}" for cell in cells), flush=True)
    if options.out:
        options.out.write_text(json.dumps({"jax": jax.__version__, "milliseconds": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
