"""Runs that are started, stopped, doubled, cut short and begun again: one command line for all of it."""

import io
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import noise_records
from hypothesis import given
from hypothesis import strategies as st

import spp_jax.data
from spp_jax import Bucket, BucketPlan, Scorer, compilation
from spp_jax.checkpoints import Checkpoints
from spp_jax.cli import evaluate, train
from spp_jax.config import RunConfig
from spp_jax.errors import UsageError
from spp_jax.run import evaluator
from spp_jax.run.journal import Journal, read_journal
from spp_jax.run.lock import RunLock, check_free
from spp_jax.scoring import shipped

RECORDS = noise_records()
QUICK = ["--data", "noise", "--buckets", "1", "--pixels-per-step", "20000"]


@pytest.fixture(autouse=True)
def noise_dataset(monkeypatch):
    monkeypatch.setitem(spp_jax.data.DATASETS._entries, "noise", lambda *_: (RECORDS, {}))


@pytest.fixture
def call(compiled_once, capsys):
    def call(*arguments) -> tuple[int, str]:
        capsys.readouterr()
        status = train.main([*map(str, arguments), "--cache-dir", str(compiled_once)])
        return status, capsys.readouterr().err

    return call


@pytest.mark.parametrize("there", [(), ("run.json",), ("checkpoints/",), ("lock", "metrics.jsonl")])
def test_one_command_line_begins_where_nothing_was_saved_and_goes_on_where_something_was(
    call, tmp_path, there
):
    folder = tmp_path / "run"
    for name in there:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text("")
    same = [*QUICK, "--steps", 2, "--resume", "--out", folder]
    status, said = call(*same)
    assert status == 0
    assert f"--resume: {folder} holds no checkpoint yet: the run begins" in said
    status, said = call(*same)
    assert status == 0
    assert "resumed at step 2 of 2" in said
    assert [line["step"] for line in read_journal(folder) if "loss" in line] == [1, 2]


def test_a_second_run_into_the_same_folder_is_refused_and_the_first_ones_journal_stays(call, tmp_path):
    (tmp_path / "run").mkdir()
    with RunLock(tmp_path / "run"):
        status, said = call(*QUICK, "--steps", 1, "--resume", "--out", tmp_path / "run")
        assert status == 2
        assert f"another process trains into {tmp_path / 'run'}: wait for its end" in said
        with pytest.raises(UsageError), RunLock(tmp_path / "run"):
            pass
    check_free(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


LOCKED = "import sys, time; from pathlib import Path; from spp_jax.run.lock import RunLock\n"
LOCKED += "RunLock(Path(sys.argv[1])).__enter__(); print('locked', flush=True); time.sleep(60)"


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", LOCKED, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    with pytest.raises(UsageError):
        check_free(tmp_path)
    process.kill()
    process.communicate()
    check_free(tmp_path)
    with RunLock(tmp_path):
        pass


def test_a_signal_while_judging_breaks_it_off_and_what_was_owed_is_done_on_resumption(
    call, tmp_path, monkeypatch
):
    judge = evaluator.score_records

    def told(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return judge(*arguments, **options)

    arguments = [*QUICK, "--steps", 2, "--resume", "--out"]
    assert call(*arguments, tmp_path / "whole")[0] == 0
    monkeypatch.setattr(evaluator, "score_records", told)
    assert call(*arguments, tmp_path / "run")[0] == 75
    monkeypatch.undo()
    monkeypatch.setitem(spp_jax.data.DATASETS._entries, "noise", lambda *_: (RECORDS, {}))
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() == 2
    assert call(*arguments, tmp_path / "run")[0] == 0
    whole, run = read_journal(tmp_path / "whole"), read_journal(tmp_path / "run")
    assert run == whole
    with Checkpoints(tmp_path / "run") as one, Checkpoints(tmp_path / "whole") as other:
        assert one.best_step() == other.best_step()
        for name, values in one.model_variables().items():
            np.testing.assert_array_equal(values, other.model_variables()[name])


SLOW = """
import sys, threading
sys.modules["torch"] = None
import tensorboardX
del sys.modules["torch"]
from conftest import noise_records
import spp_jax.data
from spp_jax import compilation
from spp_jax.cli import evaluate, train
spp_jax.data.DATASETS._entries["noise"] = lambda *_: (noise_records(), {})
def forever(self, bucket, *rest):
    print("compiles", flush=True)
    threading.Event().wait()
compilation.BucketExecutables._compile = forever
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_signal_while_compiling_waits_for_no_compilation(tmp_path):
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *QUICK, "--out", tmp_path / "run", "--cache-dir", tmp_path / "xla"],
        env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "compiles\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() == 0


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"loss": 1}', '{"step": "2", "loss": 1}', '{"step": 2}', "[" * 100_000, "\udcff"]
)
def test_what_is_no_line_of_a_journal_is_left_out_and_missing_steps_are_told(tmp_path, caplog, line):
    good = [json.dumps({"step": n, "loss": 0.5, "accuracy": 1.0, "pictures": 8}) for n in (1, 3)]
    text = "\n".join([good[0], line, good[1]]) + "\n"
    (tmp_path / "metrics.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    journal = Journal(tmp_path, 4)
    journal.close()
    assert [line["step"] for line in read_journal(tmp_path)] == [1, 3]
    assert "metrics.jsonl, line 2, is no line of a journal" in caplog.text
    assert "lacks 2 of the 4 steps done, such as step 2" in caplog.text


def test_the_clock_going_back_and_a_failing_board_do_not_stop_the_journal(tmp_path, monkeypatch, caplog):
    now = time.time()
    journal = Journal(tmp_path, 0)
    for step in range(1, 60):  # more than any queue holds
        monkeypatch.setattr(time, "time", lambda step=step: now - step * 1e6)
        journal.write({"step": step, "loss": 0.5, "accuracy": 1.0, "pictures": 8})
    board = journal._board
    assert board is not None
    monkeypatch.setattr(board._events, "write_event", lambda event: 1 / 0)
    journal.write({"step": 60, "loss": 0.5, "accuracy": 1.0, "pictures": 8})
    journal.close()
    assert len(read_journal(tmp_path)) == 60
    assert caplog.text.count("TensorBoard's events are not written any more") == 1
    assert not [t for t in threading.enumerate() if "Event" in type(t).__name__]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(RunConfig().to_dict())), json_values)
def test_a_configuration_of_other_types_is_refused_in_a_line_or_is_one(name, value):
    said, config = "", RunConfig()
    try:
        config = RunConfig.from_dict({name: value})
    except UsageError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 500
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(json_values | st.fixed_dictionaries({"format": st.just(1), "buckets": json_values}))
def test_what_is_no_plan_is_refused_in_a_line(value):
    with pytest.raises(ValueError, match="this is no bucket plan") as caught:
        BucketPlan.from_json(json.dumps(value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [[200_000, 200_000], [10**30, 1]])
def test_a_plan_deeper_or_larger_than_anything_is_refused(shape):
    for text in (
        "[" * 100_000,
        json.dumps({"format": 1, "buckets": [Bucket(tuple(shape), 1)._asdict()]}),
    ):
        with pytest.raises(ValueError, match="this is no bucket plan"):
            BucketPlan.from_json(text)


def test_a_correlation_of_exactly_nothing_is_no_missing_one(call, tmp_path, monkeypatch):
    validate = evaluator.Evaluator.validate

    def nothing(self, state, records):
        figures, scores, failed = validate(self, state, records)
        return figures | {"srcc": 0.0}, scores, failed

    monkeypatch.setattr(evaluator.Evaluator, "validate", nothing)
    status, said = call(*QUICK, "--steps", 1, "--out", tmp_path / "run")
    assert status == 0
    assert "SRCC 0.000" in said
    assert not math.isnan(read_journal(tmp_path / "run")[-1]["validation"]["srcc"])


def test_a_cache_that_cannot_be_written_is_said_and_gone_without(tmp_path, caplog, compiled_once):
    (tmp_path / "file").write_text("")
    try:
        compilation.use_compilation_cache(tmp_path / "file" / "xla")
        assert "compiled programs are not kept for the next start" in caplog.text
    finally:
        compilation.use_compilation_cache(compiled_once)


def test_an_account_without_home_has_its_folder_all_the_same(monkeypatch):
    def homeless(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compilation.platformdirs, "user_cache_dir", homeless)
    assert compilation.user_folder().is_absolute()
    monkeypatch.setattr(compilation.platformdirs, "user_cache_dir", lambda name: f"~/.cache/{name}")
    assert compilation.user_folder().is_absolute()


@pytest.mark.parametrize(
    ("environment", "rest", "status", "said"),
    [
        ({"JAX_PLATFORMS": "cuda"}, "", 2, "JAX finds no device: JAX_PLATFORMS is 'cuda'"),
        ({}, "--checkpoint . >&-", 2, "holds no checkpoint of a run"),
        ({}, "--checkpoint . 2>&-", 2, ""),
    ],
)
def test_where_it_starts_is_no_traceback(tmp_path, environment, rest, status, said):
    here = Path(__file__).parents[1]
    command = f"'{sys.executable}' -m spp_jax evaluate --photos a.jpg {rest}"
    ran = subprocess.run(
        ["sh", "-c", command],
        env={**os.environ, "PYTHONPATH": str(here), **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == status, ran.stderr
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_scorer_is_neither_pickled_nor_used_in_a_forked_child(monkeypatch):
    scorer = Scorer.from_checkpoint(shipped("compact"))
    with pytest.raises(TypeError, match="send the checkpoint's path"):
        pickle.dumps(scorer)
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)  # as it is there
    with pytest.raises(RuntimeError, match="forked child"):
        scorer.score([np.zeros((40, 40, 3), np.uint8)])


def test_figures_are_kept_before_they_are_printed_and_a_folder_that_cannot_be_written_ends_nothing(
    call, tmp_path, capsys, monkeypatch, compiled_once
):
    assert call(*QUICK, "--steps", 1, "--out", tmp_path / "run")[0] == 0
    arguments = ["--checkpoint", str(tmp_path / "run"), "--data", "noise", "--cache-dir", str(compiled_once)]

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed())
        assert evaluate.main([*arguments, "--out", str(tmp_path / "figures.json")]) == 1
    assert json.loads((tmp_path / "figures.json").read_text())["count"] == 8
    (tmp_path / "run" / "metrics.json").unlink()
    (tmp_path / "run" / "metrics.json").mkdir()
    capsys.readouterr()
    assert evaluate.main(arguments) == 0
    printed, said = capsys.readouterr()
    assert "accuracy" in printed
    assert "the figures are not kept" in said
