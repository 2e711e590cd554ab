"""What a network keeps of one picture for the backward pass, with --remat and without.

    python benchmarks/rematerialization.py [--size 768 1024] [--dtype bfloat16]

Counted in the traced program, nothing is run: the arrays that its forward half hands to its backward half,
less parameters and statistics. A compiler may keep fewer, by fusing; XLA's CPU backend keeps all of them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

from spp_jax import create_model, list_models


@dataclasses.dataclass(frozen=True)
class Options:
    """What a network keeps of one picture for the backward pass."""

    size: tuple[int, int] = (768, 1024)
    """Height and width of the picture."""
    dtype: str = "float32"
    """What the network computes in."""


def kept(name: str, remat: bool, options: Options) -> int:
    """Bytes."""

    def make() -> nnx.Module:
        return create_model(name, dtype=jnp.dtype(options.dtype), remat=remat, rngs=nnx.Rngs(0))

    graph, params, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)

    def backward(params, rest, picture):
        return jax.vjp(lambda params: nnx.merge(graph, params, rest, copy=True)(picture), params)[1]

    picture = jax.ShapeDtypeStruct((1, *options.size, 3), jnp.uint8)
    handed = jax.eval_shape(backward, params, rest, picture)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(handed)) - sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves((params, rest))
    )


def main() -> None:
    options = tyro.cli(Options)
    print(f"{'MiB':12s}{'without':>10s}{'--remat':>10s}")
    for name in list_models():
        without, remat = (kept(name, remat, options) / 2**20 for remat in (False, True))
        print(f"{name:12s}{without:10.0f}{remat:10.0f}")


if __name__ == "__main__":
    main()
