import json

import jax
import numpy as np
import pytest
from flax import nnx

from spp_jax import Bucket, BucketPlan, Scorer, create_model
from spp_jax.checkpoints import About, Checkpoints
from spp_jax.config import RunConfig, UsageError
from spp_jax.training import create_training

PLAN = BucketPlan((Bucket((32, 48), 2),))
ABOUT = About(RunConfig(steps=3, levels=(1, 3)), PLAN, "0123")


def variables(seed=0, **options):
    return nnx.state(create_model("compact", rngs=nnx.Rngs(seed), **options))


@pytest.fixture
def training():
    return create_training(RunConfig(), 10, 8.0)[1].opt_state


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


def test_older_checkpoints_are_pruned_and_none_is_half_written(saved):
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["2", "3"]


def test_another_model_is_refused_by_the_path_that_differs(saved):
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(UsageError, match="another model: model/hidden/bias"),
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
    fields[change] = {"format": 99, "config": {"data": "x"}, "plan": "{}"}[change]
    file.write_text(json.dumps(fields))
    with Checkpoints(saved) as checkpoints, pytest.raises(UsageError, match="no checkpoint of this version"):
        checkpoints.about()


def test_a_checkpoint_of_an_unknown_model_is_refused(saved):
    file = saved / "checkpoints" / "3" / "about" / "metadata"
    fields = json.loads(file.read_text())
    fields["config"]["model"] = "of-another-day"
    file.write_text(json.dumps(fields))
    with pytest.raises(UsageError, match="'of-another-day' is unknown"):
        Scorer.from_checkpoint(saved)


def test_a_folder_that_only_looks_like_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "checkpoints" / "7" / "weights.bin").write_bytes(b"foreign")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UsageError) as caught:
        checkpoints.about()
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of TensorStore's threads
def test_damaged_arrays_are_refused_in_one_line(saved):
    for file in (saved / "checkpoints" / "3" / "model").rglob("*"):
        if file.is_file() and "metadata" not in file.name.lower():
            file.write_bytes(b"")
    with Checkpoints(saved) as checkpoints, pytest.raises(UsageError) as caught:
        checkpoints.restore_model(variables())
    assert "\n" not in str(caught.value)
