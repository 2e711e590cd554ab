import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spp_jax import Bucket
from spp_jax.compilation import (
    BucketExecutables,
    CompilationWarning,
    DoesNotFitError,
    compile_lowered,
    compiler_options,
    default_cache_dir,
    device_memory,
    quick_flags,
    use_compilation_cache,
    warn_of_compilations,
)
from spp_jax.testing import count_compilations

BUCKETS = (Bucket((3, 4), 2), Bucket((5, 4), 1), Bucket((8, 8), 1))


def total(weight, images):
    return weight * images.sum((1, 2))


@pytest.fixture
def executables():
    def arguments(bucket):
        images = jax.ShapeDtypeStruct((bucket.batch_size, *bucket.shape), np.float32)
        return jax.ShapeDtypeStruct((), np.float32), images

    return BucketExecutables(total, arguments)


def run(executables, bucket):
    images = np.ones((bucket.batch_size, *bucket.shape), np.float32)
    return executables[bucket].call(np.float32(2), images)


class TestCompilerOptions:
    def test_a_cpus_convolutions_are_left_to_eigen_and_other_devices_are_told_nothing(self):
        (option,) = compiler_options("cpu", {})
        assert "ynn" in option
        assert compiler_options("gpu", {}) == compiler_options("tpu", {}) == {}

    def test_who_says_in_xlas_flags_what_ynnpack_is_for_has_that(self):
        (option,) = compiler_options("cpu", {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"})
        assert compiler_options("cpu", {"XLA_FLAGS": f"--{option}=LIBRARY_FUSION_TYPE_DOT"}) == {}

    def test_they_follow_the_devices_that_a_program_is_for(self, monkeypatch):
        class Lowered:
            def compile(self, compiler_options):
                return compiler_options

        monkeypatch.setenv("XLA_FLAGS", "")
        on_tpu = types.SimpleNamespace(
            sharding=types.SimpleNamespace(device_set=[types.SimpleNamespace(platform="tpu")])
        )
        here = jax.device_put(np.zeros(3))
        assert compile_lowered(Lowered(), BUCKETS[0], [{"a": on_tpu}, 3]) == {}
        for arguments in ([{"a": here}], [np.zeros(3)]):
            assert compile_lowered(Lowered(), BUCKETS[0], arguments) == compiler_options(
                jax.default_backend()
            )


class TestBucketExecutables:
    def test_compile_all_gives_each_bucket_once_with_its_seconds_and_bytes(self, executables):
        with count_compilations() as count:
            compiled = list(executables.compile_all(BUCKETS))
            assert count.compiled["total"] + count.cached["total"] == 3
            for bucket in BUCKETS:
                expected = np.full(bucket.batch_size, 2 * np.prod(bucket.shape))
                np.testing.assert_array_equal(run(executables, bucket), expected)
            assert len(list(executables.compile_all(BUCKETS))) == 3
        assert count.compiled["total"] + count.cached["total"] == 3
        assert {c.bucket for c in compiled} == set(BUCKETS)
        assert all(c.seconds > 0 for c in compiled)
        # At least its arguments and results.
        assert all(c.bytes >= 4 * (c.bucket.pixels + c.bucket.batch_size + 1) for c in compiled)

    def test_a_bucket_that_was_not_compiled_ahead_is_when_it_is_asked_for(self, executables):
        list(executables.compile_all(BUCKETS[:1]))
        assert len(executables) == 1
        run(executables, BUCKETS[1])
        assert len(executables) == 2

    def test_an_error_of_the_function_comes_through_and_keeps_what_was_compiled(self):
        def picky(x):
            if x.shape[1] == 8:
                raise ZeroDivisionError
            return x

        executables = BucketExecutables(
            picky, lambda bucket: (jax.ShapeDtypeStruct((bucket.batch_size, *bucket.shape), np.float32),)
        )
        with pytest.raises(ZeroDivisionError):
            list(executables.compile_all(BUCKETS))
        assert list(executables.compile_all(BUCKETS[:2]))

    def test_a_compiler_out_of_memory_names_every_bucket(self, executables, monkeypatch):
        class Lowered:
            def compile(self, compiler_options):
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")

        monkeypatch.setattr(executables, "_lower", lambda bucket: (Lowered(), (), 0.0))
        with pytest.raises(DoesNotFitError) as caught:
            list(executables.compile_all(BUCKETS))
        for bucket in BUCKETS:
            assert f"bucket {bucket}: RESOURCE_EXHAUSTED: Ran out" in str(caught.value)


def test_the_memory_of_this_machine_is_known():
    memory = device_memory(jax.devices("cpu")[0])
    assert memory is not None
    assert 2**28 < memory < 2**50


SAID = r"after precompilation, .* was compiled for .*float32\[4,2\].* now f32\[4,2\].* and before f32\[3\]"


class TestWarning:
    def test_names_function_shapes_and_cause(self):
        @jax.jit
        def doubled(x):
            return 2 * x

        doubled(np.zeros(3, np.float32))
        with warn_of_compilations(), warnings.catch_warnings():
            warnings.simplefilter("error")
            doubled(np.ones(3, np.float32))
        x = np.zeros((4, 2), np.float32)
        with (
            warn_of_compilations(),
            pytest.warns(CompilationWarning, match=SAID),
        ):
            doubled(x)

    def test_is_an_error_at_the_place_where_warnings_are_errors(self):
        @jax.jit
        def halved(x):
            return x / 2

        with warn_of_compilations(), pytest.raises(CompilationWarning, match="halved was compiled"):
            halved(np.zeros(3, np.float32))

    def test_leaves_jax_as_it_was(self, caplog):
        before = jax.config.values["jax_explain_cache_misses"]
        with warn_of_compilations():
            assert jax.config.values["jax_explain_cache_misses"]
        assert jax.config.values["jax_explain_cache_misses"] == before
        with count_compilations():
            jax.jit(lambda x: x + 17)(jnp.zeros(3))
        assert not caplog.records

    def test_watches_may_be_nested(self):
        @jax.jit
        def thirded(x):
            return x / 3

        with count_compilations() as outer:
            with warn_of_compilations(), pytest.warns(CompilationWarning, match=r"float32\[3\]"):
                thirded(np.zeros(3, np.float32))
            thirded(np.zeros(5, np.float32))
        assert outer.compiled["thirded"] + outer.cached["thirded"] == 2


CACHE = """
import logging
logging.basicConfig()
import jax, jax.numpy as jnp
from spp_jax.compilation import use_compilation_cache
from spp_jax.testing import count_compilations
import sys
use_compilation_cache(sys.argv[1])
with count_compilations() as count:
    jax.jit(lambda x: x + 1)(jnp.zeros(3))
print(sum(count.compiled.values()), sum(count.cached.values()))
"""


class TestCache:
    def test_a_second_process_compiles_nothing_not_even_what_compiles_fast(self, tmp_path):
        folder = tmp_path / "deep" / "xla"
        printed = [
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", CACHE, str(folder)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,  # the watch shows nothing
                text=True,
                check=True,
            ).stdout.split()
            for _ in range(2)
        ]
        (compiled, cached), (compiled_again, cached_again) = printed
        assert (cached, compiled_again) == ("0", "0")
        assert compiled == cached_again != "0"
        assert folder.stat().st_mode & 0o077 == 0

    def test_a_folder_that_others_may_write_to_is_warned_of(self, tmp_path):
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared").chmod(0o777)
        before = jax.config.values["jax_compilation_cache_dir"]
        try:
            with pytest.warns(UserWarning, match="others may write programs to"):
                use_compilation_cache(tmp_path / "shared")
        finally:
            jax.config.update("jax_compilation_cache_dir", before)

    def test_another_folder_takes_over(self, tmp_path):
        names = [name for name in jax.config.values if "persistent_cache_min" in name]
        before = {name: jax.config.values[name] for name in [*names, "jax_compilation_cache_dir"]}
        try:
            for name in ("one", "two"):
                use_compilation_cache(tmp_path / name)
                jax.jit(lambda x, name=name: x * len(name) + 3)(np.zeros(3, np.float32))
                assert list((tmp_path / name).iterdir())
        finally:
            for name, value in before.items():
                jax.config.update(name, value)

    def test_jaxs_own_variable_is_the_default(self, monkeypatch):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
        assert default_cache_dir() == "/somewhere"
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        assert Path(default_cache_dir()).name == "xla"


DEVICES = """
import sys
import jax, numpy as np
devices = int(sys.argv[1])
jax.config.update("jax_num_cpu_devices", devices)
from conftest import noise_records
from spp_jax import plan_buckets
from spp_jax.compilation import data_mesh, replicated
from spp_jax.config import RunConfig
from spp_jax.data.schedule import Schedule
from spp_jax.training import configured_training, fit, step_executables
records, config, mesh = noise_records(), RunConfig(buckets=2, pixels_per_step=20_000), data_mesh()
assert mesh.size == devices
plan = plan_buckets(records.sizes, **config.bucketing)
assert devices == 1 or any(bucket.batch_size % devices for bucket in plan.buckets)
schedule = Schedule(records.sizes, plan, seed=0, flip=True)
recipe, state = configured_training(config, 10, schedule.mean_batch)
state = jax.device_put(state, replicated(mesh))
step = step_executables(recipe, state, mesh)
losses = []
def after_step(done, state, metrics):
    losses.append(metrics["loss"])
state = fit(step, state, records, schedule, mesh, start=0, stop=5, after_step=after_step)
np.savez(sys.argv[2], losses, *jax.tree.leaves(state.params))
"""


@pytest.mark.slow
def test_a_run_does_not_depend_on_the_number_of_devices(tmp_path):
    """Nor do these divide the batches: rows of weight 0 fill up."""
    here = Path(__file__).parent
    results = []
    for devices in (1, 3):
        path = tmp_path / f"{devices}.npz"
        subprocess.run(
            [sys.executable, "-c", DEVICES, str(devices), str(path)],
            env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
            check=True,
        )
        results.append(np.load(path))
    one, three = results
    assert len(one.files) > 5
    for name in one.files:
        np.testing.assert_allclose(three[name], one[name], rtol=1e-3, atol=1e-5)


def test_quick_flags_are_all_known_to_this_xla():
    """XLA ends the process at a flag that it does not know."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = quick_flags(0, environment)
    code = "import jax; print(jax.numpy.arange(3).sum())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr
