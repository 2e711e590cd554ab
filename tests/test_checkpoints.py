import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import truncate_arrays
from flax import nnx

from spp_jax import Bucket, BucketPlan, Scorer, create_model
from spp_jax.checkpoints import About, Checkpoints
from spp_jax.config import RunConfig
from spp_jax.errors import UsageError
from spp_jax.models.weights import take_variables
from spp_jax.training import configured_training

PLAN = BucketPlan((Bucket((32, 48), 2),))
ABOUT = About(RunConfig(steps=3, levels=(1, 3)), PLAN, "0123")


def variables(seed=0, **options):
    return nnx.state(create_model("compact", rngs=nnx.Rngs(seed), **options))


@pytest.fixture
def training():
    return training_state()


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)


@pytest.fixture
def saved(tmp_path, training):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, variables(seed=step), training, ABOUT)
    return tmp_path


def test_a_new_process_restores_what_was_saved_last(saved, training):
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest_step() == 3
        assert checkpoints.about() == ABOUT
        assert_equal(checkpoints.restore_model(variables()), variables(seed=3))
        assert_equal(checkpoints.restore_training(training), training)


def test_a_model_of_which_shapes_alone_are_given_is_restored_as_numpy_arrays(saved):
    with Checkpoints(saved) as checkpoints:
        found = checkpoints.restore_model(jax.eval_shape(variables))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
    assert_equal(found, variables(seed=3))


def test_older_checkpoints_are_pruned_and_none_is_half_written(saved):
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["2", "3"]


def test_another_model_is_refused_by_the_path_that_differs(saved):
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(UsageError, match="another model: model/head/hidden/bias"),
    ):
        checkpoints.restore_model(variables(hidden=7))


def test_a_folder_without_a_checkpoint_says_what_to_give(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.latest_step() is None
            with pytest.raises(UsageError, match="holds no checkpoint of a run"):
                checkpoints.about()
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("change", ["format", "config", "plan"])
def test_a_checkpoint_of_another_version_is_refused(saved, change):
    file = saved / "checkpoints" / "3" / "about" / "metadata"
    fields = json.loads(file.read_text())
    fields[change] = {"format": 99, "config": {"colour": "x"}, "plan": "{}"}[change]
    file.write_text(json.dumps(fields))
    with Checkpoints(saved) as checkpoints, pytest.raises(UsageError, match="no checkpoint of this version"):
        checkpoints.about()


def test_a_checkpoint_of_an_unknown_model_is_refused(saved):
    file = saved / "checkpoints" / "3" / "about" / "metadata"
    fields = json.loads(file.read_text())
    fields["config"]["model"] = "of-another-day"
    del fields["digest"]  # as of one who named it otherwise, and not as of a damaged disk
    file.write_text(json.dumps(fields))
    with pytest.raises(UsageError, match="'of-another-day' is unknown"):
        Scorer.from_checkpoint(saved)


def test_a_folder_that_only_looks_like_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "checkpoints" / "7" / "weights.bin").write_bytes(b"foreign")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UsageError) as caught:
        checkpoints.about()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0, 0.5])
def test_truncated_arrays_are_refused_in_one_line(saved, share):
    truncate_arrays(saved / "checkpoints" / "3", share)
    with Checkpoints(saved) as checkpoints, pytest.raises(UsageError) as caught:
        checkpoints.restore_model(variables())
    assert "\n" not in str(caught.value)
    time.sleep(1)  # the other arrays' threads find the event loop closed: here, and not in the next test


def test_the_checkpoint_that_judged_best_is_kept_beside_the_latest(tmp_path, training):
    with Checkpoints(tmp_path) as checkpoints:
        for step, srcc in enumerate((0.3, 0.8, 0.5, None, None), 1):
            checkpoints.save(step, variables(seed=step), training, ABOUT, srcc)
        checkpoints.wait()
        assert checkpoints.best_step() == 2
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.best_step(), checkpoints.latest_step()) == (2, 5)


def test_nothing_is_best_where_none_was_judged(saved):
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.best_step() is None


def test_another_model_begins_with_what_fits_it(saved):
    like = variables(seed=7, outputs=3)
    with Checkpoints(saved) as checkpoints:
        found, taken, left = take_variables(like, checkpoints.model_variables())
    assert left == ["head/logits/bias", "head/logits/kernel"]
    assert "body/stages/0/conv/kernel" in taken
    theirs, mine = variables(seed=3), like
    for path in taken:
        assert_equal(at(found, path), at(theirs, path))
    for path in left:
        assert_equal(at(found, path), at(mine, path))


SAVE_ON_EIGHT = """
import pathlib, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from spp_jax.compilation import data_mesh, placements
from test_checkpoints import ABOUT, Checkpoints, RunConfig, configured_training, variables
state = variables(seed=3)
state = jax.device_put(state, placements(state, data_mesh(), 100))
assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
with Checkpoints(pathlib.Path(sys.argv[1])) as checkpoints:
    checkpoints.save(1, state, configured_training(RunConfig(), 10, 8.0)[1].opt_state, ABOUT)
    checkpoints.wait()
"""


def test_what_eight_devices_saved_another_run_begins_with_on_one(tmp_path):
    here = Path(__file__).parent
    subprocess.run(
        [sys.executable, "-c", SAVE_ON_EIGHT, tmp_path],
        env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
        check=True,
    )
    with Checkpoints(tmp_path) as checkpoints:
        found, _, left = take_variables(variables(seed=7), checkpoints.model_variables())
        assert_equal(found, variables(seed=3))
        assert left == []
        assert_equal(checkpoints.restore_model(variables()), variables(seed=3))


@pytest.mark.parametrize("part", ["model", "training"])
def test_where_what_it_says_of_its_arrays_is_gone_it_is_damaged_and_not_of_another_model(saved, part):
    (saved / "checkpoints" / "3" / part / "_METADATA").unlink()
    training = configured_training(RunConfig(), 10, 8.0)[1].opt_state
    with Checkpoints(saved) as checkpoints:
        restore = {"model": checkpoints.restore_model, "training": checkpoints.restore_training}[part]
        with pytest.raises(UsageError, match="cannot be restored") as caught:
            restore({"model": variables(), "training": training}[part])
    assert "another model" not in str(caught.value)


def at(state: nnx.State, path: str):
    for part in path.split("/"):
        state = state[int(part) if part.isdigit() else part]
    return state


FILL = """
import contextlib, pathlib, sys
from test_checkpoints import ABOUT, Checkpoints, RunConfig, configured_training, variables
disk = pathlib.Path(sys.argv[1])
training = configured_training(RunConfig(), 10, 8.0)[1].opt_state
with Checkpoints(disk) as checkpoints:
    for step in range(1, 99):
        try:
            checkpoints.save(step, variables(seed=step), training, ABOUT)
            checkpoints.wait()
        except OSError as error:
            print("said:", error)
            raise
        with contextlib.suppress(OSError):
            (disk / f"fill-{step}").write_bytes(bytes(200_000))
"""


def test_a_full_disk_is_said_and_what_was_saved_stands(tmp_path):
    """On a file system of two megabytes, where one can be mounted; in a process of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]).returncode:
        pytest.skip("no file system can be mounted here")
    here = Path(__file__).parent
    try:
        ran = subprocess.run(
            [sys.executable, "-c", FILL, disk],
            env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == 1
        assert (
            f"said: no checkpoint can be written to {disk}/checkpoints: No space left on device" in ran.stdout
        )
        for path in disk.glob("fill-*"):
            path.unlink()
        with Checkpoints(disk) as checkpoints:
            step = checkpoints.latest_step()
            assert step is not None
            assert_equal(checkpoints.restore_model(variables()), variables(seed=step))
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.fixture
def broken(saved):
    """Give a function that has what is said, in a line, of each part of the latest step as it is by then."""

    def said() -> dict[str, str]:
        opt_state = training_state()
        found = {}
        for part in ("about", "model", "training"):
            with Checkpoints(saved) as checkpoints:
                restore = {
                    "about": checkpoints.about,
                    "model": lambda: checkpoints.restore_model(variables()),
                    "training": lambda: checkpoints.restore_training(opt_state),
                }
                try:
                    restore[part]()
                except UsageError as error:
                    found[part] = str(error)
                    assert "\n" not in found[part]
        return found

    return said


def flip(file: Path, place: int) -> None:
    """Change one bit."""
    content = bytearray(file.read_bytes())
    content[place // 8 % len(content)] ^= 1 << place % 8
    file.write_bytes(content)


def test_no_flipped_bit_is_restored_in_silence_and_the_step_before_is_offered(saved, broken, training):
    """Of every file of a checkpoint, bits here and there; what is not refused is what was saved."""
    latest, rng = saved / "checkpoints" / "3", np.random.default_rng(0)
    files = [path for path in sorted(latest.rglob("*")) if path.is_file() and path.stat().st_size]
    arrays = [path for path in files if path.parent.name == "d" and path.stat().st_size > 2000]
    assert arrays
    assert not broken()
    refused = 0
    for path in [*files, *arrays, *arrays]:
        whole = path.read_bytes()
        flip(path, int(rng.integers(8 * len(whole))))
        said = broken()
        refused += path in arrays and bool(said)
        for text in said.values():
            assert str(latest) in text
            remove = latest / "metrics" if path.parent.name == "metrics" else latest
            assert f"remove {remove} to" in text
        if not said:
            with Checkpoints(saved) as checkpoints:
                assert_equal(checkpoints.restore_model(variables()), variables(seed=3))
                assert_equal(checkpoints.restore_training(training), training)
        path.write_bytes(whole)
    assert refused >= len(arrays)


def test_what_was_saved_before_there_were_digests_stays_readable(saved, broken):
    file = saved / "checkpoints" / "3" / "about" / "metadata"
    fields = json.loads(file.read_text())
    del fields["digest"], fields["arrays"]
    file.write_text(json.dumps(fields))
    assert not broken()


@pytest.mark.parametrize("part", ["about", "model", "training"])
def test_an_incomplete_latest_step_is_passed_over_and_said(saved, caplog, part):
    shutil.rmtree(saved / "checkpoints" / "3" / part)
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest_step() == 2
        assert_equal(checkpoints.restore_model(variables()), variables(seed=2))
        assert f"3 is incomplete, it has no {part}: 2 is taken" in caplog.text
        checkpoints.set_incomplete_aside()
        checkpoints.save(3, variables(seed=4), training_state(), ABOUT)
    assert (saved / "incomplete" / "3").is_dir()
    with Checkpoints(saved) as checkpoints:
        assert_equal(checkpoints.restore_model(variables()), variables(seed=4))


def training_state():
    return configured_training(RunConfig(), 10, 8.0)[1].opt_state


def test_the_latest_can_be_saved_again_once_it_was_judged(saved, training):
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(3, variables(seed=3), training, ABOUT, 0.5)
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.best_step() == checkpoints.latest_step() == 3


def test_what_a_run_prunes_while_another_reads_it_is_read_from_the_newest_then(saved, training):
    with Checkpoints(saved) as reader:
        assert reader.latest_step() == 3
        with Checkpoints(saved) as writer:
            for step in (4, 5):
                writer.save(step, variables(seed=step), training, ABOUT)
        assert not (saved / "checkpoints" / "3").exists()
        assert reader.about() == ABOUT
        assert_equal(reader.restore_model(variables()), variables(seed=5))
