"""Several processes, and several devices, train what one does. Processes stand for hosts."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from spp_jax import create_model
from spp_jax.checkpoints import Checkpoints
from spp_jax.run.journal import read_journal

pytestmark = pytest.mark.slow

HOST = """
import sys
sys.modules["torch"] = None  # which takes seconds, where it is there, and is not used
import tensorboardX
del sys.modules["torch"]
import jax
devices, wide = int(sys.argv[1]), sys.argv[2] == "float64"
jax.config.update("jax_num_cpu_devices", devices)
jax.config.update("jax_enable_x64", wide)
from flax import nnx
from conftest import noise_records
import spp_jax.data, spp_jax.models, train
spp_jax.data.DATASETS._entries["noise"] = lambda *_: (noise_records(), {})
if wide:  # parameters too
    make = spp_jax.models.MODELS["compact"]
    def compact(**options):
        model = make(**options)
        nnx.update(model, jax.tree.map(lambda x: x.astype("float64"), nnx.state(model)))
        return model
    spp_jax.models.MODELS._entries["compact"] = compact
"""
END = "sys.exit(train.main(sys.argv[3:]))"
QUICK = ["--data", "noise", "--buckets", "2", "--pixels-per-step", "20000", "--batch-multiple", "8"]
ONE = [*QUICK, "--buckets", "1"]  # what is not about shapes


def start(
    folder: Path, cache: Path, devices: int, dtype: str, *arguments: str, processes: int = 1, also=""
) -> list:
    """The processes of a run, which do something else as well."""
    here = Path(__file__).parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(processes):
        several = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes), "--process-id"]
        several = [*several, str(number)] if processes > 1 else []
        folders = ["--out", str(folder), "--cache-dir", str(cache)]
        command = [
            sys.executable,
            "-c",
            HOST + also + END,
            str(devices),
            dtype,
            *arguments,
            *folders,
            *several,
        ]
        started.append(
            subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finish(processes: list, status: int = 0) -> str:
    """What the first of them said; all must end with this status."""
    said = [process.communicate(timeout=500)[1] for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), said
    return said[0]


def until(there: Callable[[], bool], processes: list) -> None:
    """Wait, while the first of them runs."""
    ends = time.monotonic() + 400
    while not there():
        assert time.monotonic() < ends
        assert processes[0].poll() is None, processes[0].communicate()
        time.sleep(0.01)


def variables(folder: Path, dtype: str) -> list[np.ndarray]:
    with Checkpoints(folder) as checkpoints, jax.enable_x64(dtype == "float64"):
        like = nnx.state(create_model("compact", rngs=nnx.Rngs(0)))
        like = jax.tree.map(lambda x: x.astype(dtype), like)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoints.restore_model(like))]


def difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The largest, relative per tensor."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("xla")


@pytest.mark.parametrize(("dtype", "steps", "allowed"), [("float64", 50, 1e-9), ("float32", 5, 1e-4)])
def test_devices_and_processes_give_the_same_parameters(cache, tmp_path, dtype, steps, allowed):
    found = {}
    several = ((2, 1), (4, 1), (8, 1), (2, 2)) if dtype == "float64" else ((8, 1), (2, 2))
    for devices, processes in ((1, 1), *several):
        folder = tmp_path / f"{devices}-{processes}"
        divided = ["--fsdp", "1000"] if (dtype, processes) in (("float64", 1), ("float32", 2)) else []
        arguments = [*QUICK, *divided, "--steps", str(steps)]
        finish(start(folder, cache, devices, dtype, *arguments, processes=processes))
        found[devices, processes] = variables(folder, dtype)
        lines = read_journal(folder)
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, steps + 1))
        assert (folder / "report.html").is_file()
    for parts in several:
        assert difference(found[parts], found[1, 1]) < allowed, parts


def test_a_run_saved_on_eight_devices_goes_on_on_one(cache, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(whole, cache, 1, "float64", *QUICK, "--steps", "20", "--save-every", "10"))
    processes = start(broken, cache, 8, "float64", *QUICK, "--steps", "20", "--save-every", "10")
    ends = time.monotonic() + 400
    while not (broken / "checkpoints" / "10").is_dir() and processes[0].poll() is None:
        assert time.monotonic() < ends
        time.sleep(0.005)
    processes[0].send_signal(signal.SIGTERM)
    finish(processes, 75)
    said = finish(start(broken, cache, 1, "float64", "--resume"))
    assert re.search("resumed at step 1[0-9] of 20", said)
    assert difference(variables(broken, "float64"), variables(whole, "float64")) < 1e-9


def test_when_one_host_is_told_to_stop_all_save_the_same_step_and_go_on_later(cache, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = [*ONE, "--steps", "40", "--save-every", "1000"]
    finish(start(whole, cache, 2, "float64", *arguments, processes=2))
    processes = start(broken, cache, 2, "float64", *arguments, processes=2)
    until(lambda: len(read_journal(broken)) >= 5, processes)
    processes[1].send_signal(signal.SIGTERM)  # only this one
    finish(processes, 75)
    with Checkpoints(broken) as checkpoints:
        step = checkpoints.latest_step()
    assert step
    assert 0 < step < 40
    finish(start(broken, cache, 2, "float64", "--resume", processes=2))
    for one, other in zip(variables(broken, "float64"), variables(whole, "float64"), strict=True):
        np.testing.assert_array_equal(one, other)
    lines = [line for line in read_journal(broken) if "loss" in line]
    assert lines == [line for line in read_journal(whole) if "loss" in line]


FOREVER = """
import threading
from pathlib import Path
from spp_jax.compilation import BucketExecutables
def forever(self, bucket, *rest):
    Path(sys.argv[sys.argv.index("--out") + 1] + f"-{jax.process_index()}").write_text("compiles")
    threading.Event().wait()
BucketExecutables._compile = forever
"""


def test_when_one_host_is_told_to_stop_while_all_compile_all_leave_that_at_once(tmp_path):
    processes = start(tmp_path / "run", tmp_path / "xla", 1, "float32", *ONE, processes=2, also=FOREVER)
    until(lambda: all((tmp_path / f"run-{number}").exists() for number in (0, 1)), processes)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes, 75)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() == 0


JUDGES = """
import time
from pathlib import Path
from spp_jax.run import evaluator
judge = evaluator.score_records
def slowly(*arguments):
    *others, check = arguments
    def checks(count):
        Path(sys.argv[sys.argv.index("--out") + 1] + "-judges").write_text("")
        time.sleep(1)
        check(count)
    for _ in range(100):
        found = judge(*others, checks)
    return found
evaluator.score_records = slowly
"""


def test_when_one_host_is_told_to_stop_while_all_judge_that_is_left_and_owed(cache, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = [*ONE, "--epochs", "2", "--save-every", "1000"]
    finish(start(whole, cache, 1, "float64", *arguments, processes=2))
    processes = start(broken, cache, 1, "float64", *arguments, processes=2, also=JUDGES)
    until((tmp_path / "broken-judges").exists, processes)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes, 75)
    lines = read_journal(broken)
    assert lines
    assert not [line for line in lines if "validation" in line]
    with Checkpoints(broken) as checkpoints:
        assert checkpoints.latest_step() == lines[-1]["step"]
    finish(start(broken, cache, 1, "float64", "--resume", processes=2))
    assert read_journal(broken) == read_journal(whole)
    for one, other in zip(variables(broken, "float64"), variables(whole, "float64"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_incomplete_flags_of_several_processes_are_refused(cache, tmp_path):
    (process,) = start(tmp_path / "run", cache, 1, "float32", *QUICK, "--processes", "2")
    assert "give --coordinator, --processes and --process-id together" in finish([process], 2)
