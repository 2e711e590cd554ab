"""What the op compiles to, rather than what it computes."""

import functools
import importlib.util
import os
import subprocess
import sys
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from test_reductions import Softmax

from spp_jax import num_bins, spatial_pyramid_pool


def equations(jaxpr) -> int:
    """How many operations a program has, those of its branches and loops included."""
    inner = [sub for eqn in jaxpr.eqns for sub in jaxprs_in_params(eqn.params)]
    return len(jaxpr.eqns) + sum(map(equations, inner))


def operations(shape, levels, reduce="max"):
    def both(x, sizes):
        pooled, pull = jax.vjp(lambda x: spatial_pyramid_pool(x, sizes, levels=levels, reduce=reduce), x)
        return pooled, pull(pooled)

    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    sizes = jax.ShapeDtypeStruct((shape[0], len(shape) - 2), jnp.int32)
    return equations(jax.make_jaxpr(both)(x, sizes).jaxpr)


@pytest.mark.parametrize("reduce", ["max", "mean", Softmax(1.5)], ids=["max", "mean", "own combine"])
class TestSizeOfTheProgram:
    def test_does_not_grow_with_the_map(self, reduce):
        # Both maps have segments that take whole steps of sixteen rows.
        sizes = {operations((2, n, n, 3), (1, 2, 4), reduce) for n in (64, 512)}
        assert len(sizes) == 1

    def test_grows_no_faster_than_the_bins(self, reduce):
        smaller, larger = ((1, 2), (1, 2, 4))
        grown = operations((2, 256, 256, 3), larger, reduce) / operations((2, 256, 256, 3), smaller, reduce)
        assert grown < num_bins(larger) / num_bins(smaller)


@pytest.mark.parametrize("reduce", ["max", "mean", "generalized_mean", "top_k_mean"])
def test_one_exported_program_serves_cpu_tpu_and_cuda(reduce):
    rng = np.random.default_rng(0)
    features = rng.uniform(size=(2, 9, 7, 3)).astype(np.float32)
    sizes = np.array([[9, 7], [4, 2]], np.int32)

    @jax.jit
    def both(x, sizes):
        pooled, pull = jax.vjp(lambda x: spatial_pyramid_pool(x, sizes, reduce=reduce), x)
        return pooled, pull(jnp.ones_like(pooled))[0]

    exported = jax.export.export(both, platforms=("cpu", "tpu", "cuda"))(features, sizes)
    assert exported.platforms == ("cpu", "tpu", "cuda")
    for found, expected in zip(exported.call(features, sizes), both(features, sizes), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("reduce", ["max", "mean", "top_k_mean"])
def test_exports_for_any_batch(reduce):
    (batch,) = jax.export.symbolic_shape("b")
    pool = jax.jit(functools.partial(spatial_pyramid_pool, reduce=reduce))
    exported = jax.export.export(pool)(
        jax.ShapeDtypeStruct((batch, 9, 7, 3), jnp.float32), jax.ShapeDtypeStruct((batch, 2), jnp.int32)
    )
    rng = np.random.default_rng(0)
    for n in (1, 4):
        features = rng.uniform(size=(n, 9, 7, 3)).astype(np.float32)
        sizes = rng.integers(1, 8, (n, 2)).astype(np.int32)
        np.testing.assert_allclose(exported.call(features, sizes), pool(features, sizes), rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 4, 5, 3), (2, 4, 5, 0)])
def test_nothing_gives_nothing(shape):
    for reduce in ("max", "mean", "top_k_mean"):
        pooled = spatial_pyramid_pool(np.zeros(shape, np.float32), reduce=reduce)
        assert pooled.shape == (shape[0], 21, shape[3])


TWO_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from spp_jax import spatial_pyramid_pool
jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.sharding.Mesh(jax.devices(), ("data",))
split = jax.sharding.PartitionSpec("data")
rng = np.random.default_rng(0)
features = jnp.asarray(rng.normal(size=(4, 9, 7, 3)), jnp.float32)
sizes = jnp.asarray(rng.integers(1, 8, (4, 2)), jnp.int32)
for reduce in ("max", "mean", "top_k_mean"):
    def loss(x, s):
        pooled = spatial_pyramid_pool(x, s, reduce=reduce)
        return (pooled**2).sum(), pooled
    gradient = jax.grad(loss, has_aux=True)
    sharded = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=(split, split), out_specs=split))
    for found, expected in zip(sharded(features, sizes), jax.jit(gradient)(features, sizes), strict=True):
        assert len(found.sharding.device_set) == 2
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
print("agreed")
"""


def test_the_batch_may_be_sharded_over_devices():
    ran = subprocess.run([sys.executable, "-c", TWO_DEVICES], capture_output=True, text=True, check=False)
    assert ran.stdout == "agreed\n", ran.stderr


@pytest.fixture(scope="module")
def tpu():
    if not importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is not installed: pip install libtpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]


@pytest.mark.parametrize("shape", [(16, 128, 192, 512), (64, 48, 128, 512)])  # 400 MB
def test_a_tpu_reads_the_map_once_without_loops_or_custom_calls(tpu, shape):
    sharding = jax.sharding.SingleDeviceSharding(tpu)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
    sizes = jax.ShapeDtypeStruct((shape[0], 2), jnp.int32, sharding=sharding)

    def compiled(function, *args) -> Any:
        return jax.jit(function).lower(*args).compile()

    plain = compiled(lambda x: x.max((1, 2)), x)
    op = compiled(functools.partial(spatial_pyramid_pool, levels=(1, 2, 4)), x, sizes)
    of_plain, of_op = (program.cost_analysis()["bytes accessed"] for program in (plain, op))
    assert of_op <= 1.10 * of_plain
    text = op.as_text()
    assert " while(" not in text
    assert "custom_call_target" not in text
