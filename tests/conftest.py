import gc
import io
import os
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from etils.epath.backend import fsspec_backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, settings
from PIL import Image

from spp_jax.compilation import quick_flags
from spp_jax.data.records import Records


def pytest_configure():
    """Most of the time of the suite is compilation of small programs: LLVM may leave them as they are.

    What is about rounding asks for the optimisation (`compiler_options`).
    """
    os.environ["XLA_FLAGS"] = quick_flags(0)
    # Where an operation was traced is not looked at, in this process and in those that it starts.
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
    jax.config.update("jax_traceback_in_locations_limit", 0)


def pytest_collection_finish():
    """What the imports and the collection made lives as long as the suite: the collector need not visit it.

    Tracing makes many small objects, and each full collection would walk through jax and all tests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


# Every new shape compiles: no deadline per example, and few examples that count.
settings.register_profile(
    "suite", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """What takes long to compile is compiled once a session and process: the folder where it is kept.

    Not shared by the processes: JAX does not write it atomically.
    """
    folder = tmp_path_factory.mktemp("xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return folder


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


class Cloud(DirFileSystem):
    """Stands for gs://: its buckets are the folders of a folder on the disk."""

    cachable = False
    root = ""

    def __init__(self, **options):
        super().__init__(path=Cloud.root, fs=LocalFileSystem())

    @classmethod
    def _strip_protocol(cls, path):
        return str(path).removeprefix("gs://")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder on the disk that is at ``gs://bucket`` as well."""
    folder = tmp_path / "cloud" / "bucket"
    folder.mkdir(parents=True)
    monkeypatch.setattr(Cloud, "root", str(folder.parent))
    fsspec_backend._get_filesystem.cache_clear()
    fsspec.register_implementation("gcs", Cloud, clobber=True)
    yield folder
    fsspec_backend._get_filesystem.cache_clear()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def truncate_arrays(checkpoint: Path, share: float) -> None:
    """Leave but this share of each file that holds a model's variables; their metadata stay whole."""
    for file in (checkpoint / "model").rglob("*"):
        if file.is_file() and "metadata" not in file.name.lower():
            whole = file.read_bytes()
            file.write_bytes(whole[: int(share * len(whole))])


def noise_records(
    count: int = 40,
    *,
    low: int = 20,
    high: int = 60,
    groups: int = 10,
    seed: int = 0,
    distinct: bool = False,
) -> Records:
    """Grey pictures of many sizes, each as noisy as its score is low."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(low, high, (count, 2))
    if distinct:
        side = high - low
        sizes = low + np.stack(np.divmod(rng.choice(side**2, count, replace=False), side), axis=1)
    scores = rng.uniform(0, 1, count).astype(np.float32)
    pictures = [
        png((128 + rng.uniform(-120, 120, (*size, 3)) * (1 - score)).astype(np.uint8))
        for size, score in zip(sizes, scores, strict=True)
    ]
    return Records(
        ids=tuple(f"noise-{i:03d}" for i in range(count)),
        sizes=sizes,
        photo=pictures.__getitem__,
        scores=scores,
        good=scores >= 0.5,
        groups=tuple(f"group-{i % groups}" for i in range(count)),
    )
