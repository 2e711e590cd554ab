"""Whether the gradient of a max is right inside a jitted net: XLA's own, and the op's.

    python benchmarks/gradient_of_max.py

Five layers of convolution, ReLU and batch norm in float64, one program. There the compiler may compute the
feature map twice, with different rounding; a gradient that finds the winner by comparing the values with the
maximum, as XLA's own and everybody's first one does, then finds none, or two. Whether it happens depends on
the processor and on flags. The op keeps the winner's index instead.

Prints, for this machine and on a CPU with each of XLA's two emitters of fused loops, the derivative along a
fixed direction by the jitted gradient and by finite differences. It judges nothing: the exit status is 0.
"""

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spp_jax import spatial_pyramid_pool

FLAGS = ("",) if jax.__version_info__ >= (0, 11) else ("", "--xla_cpu_use_fusion_emitters=false")
"""Of XLA, one after the other. The second chooses code for fused loops that XLA no longer has in jax 0.11."""


def loss_after_a_net(pool: Callable) -> tuple[Callable, list[jax.Array]]:
    """A loss of the kernels of a net that ends in ``pool``, and the kernels, in float64."""
    rng = np.random.default_rng(0)
    widths, strides = (3, 24, 24, 48, 48, 96), (1, 2, 1, 2, 1)
    kernels = [
        jnp.asarray(rng.normal(size=(3, 3, a, b)) / math.sqrt(9 * a)) for a, b in itertools.pairwise(widths)
    ]
    images = jnp.asarray(rng.normal(size=(16, 32, 48, 3)))
    bins = pool(jnp.zeros((1, 8, 12, 96))).shape[1]
    weights = jnp.asarray(rng.normal(size=(16, bins, 96)))

    def loss(kernels):
        x = images
        for kernel, stride in zip(kernels, strides, strict=True):
            x = lax.conv_general_dilated(
                x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x)
            x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
        return (pool(x) * weights).sum()

    return loss, kernels


def directional(pool: Callable) -> tuple[float, float]:
    """The derivative along a fixed direction: by the jitted gradient, and by finite differences.

    Needs ``jax_enable_x64``. Compiled with XLA's ordinary optimisation, whatever the process has by default:
    rounding is what this is about.
    """
    loss, kernels = loss_after_a_net(pool)
    rng = np.random.default_rng(1)
    direction = [jnp.asarray(rng.normal(size=kernel.shape)) for kernel in kernels]
    options: dict = {"xla_backend_optimization_level": 3}
    gradient = jax.jit(jax.grad(loss), compiler_options=options)(kernels)
    found = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    jitted = jax.jit(loss, compiler_options=options)
    eps = 1e-9  # small: every ReLU or winner that changes sides is an error

    def at(sign):
        return float(jitted([k + sign * eps * d for k, d in zip(kernels, direction, strict=True)]))

    return found, (at(1) - at(-1)) / (2 * eps)


def report() -> None:
    """One line for each way to take the maximum."""
    jax.config.update("jax_enable_x64", True)
    ways: dict[str, Callable] = {
        "a plain max, XLA's gradient": lambda z: z.max((1, 2))[:, None],
        "the op, one level": lambda z: spatial_pyramid_pool(z, levels=(1,)),
        "the op, levels (1, 2, 4)": spatial_pyramid_pool,
    }
    for name, pool in ways.items():
        found, expected = directional(pool)
        off = abs(found / expected - 1)
        print(f"    {name:30s}{found:12.6f}{expected:22.6f}{off:12.1e}", flush=True)


def main() -> None:
    if "--here" in sys.argv:
        report()
        return
    device = jax.devices()[0]
    print(f"{device.device_kind} ({os.cpu_count()} cores), jax {jax.__version__}, float64")
    for flags in FLAGS if device.platform == "cpu" else FLAGS[:1]:
        print(
            f"\nXLA_FLAGS={flags!r}\n{'':34s}{'gradient':>12s}{'finite differences':>22s}{'apart':>12s}",
            flush=True,
        )
        environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
        subprocess.run([sys.executable, __file__, "--here"], env=environment, check=True)


if __name__ == "__main__":
    main()
