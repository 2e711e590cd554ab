import collections
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import noise_records, png, truncate_arrays
from flax import nnx
from PIL import Image
from test_weights import alexnet_tensors

import spp_jax.data
from spp_jax import create_model
from spp_jax.checkpoints import Checkpoints
from spp_jax.cli import evaluate, train
from spp_jax.config import RunConfig
from spp_jax.data.records import Records, split_records
from spp_jax.run import job, programs
from spp_jax.run.journal import read_journal

RECORDS = noise_records()
QUICK = ["--data", "noise", "--buckets", "2", "--pixels-per-step", "20000"]


@pytest.fixture(scope="module")
def cache(compiled_once):
    """A folder for compiled programs, and JAX's settings as they were afterwards."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield compiled_once
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(autouse=True)
def noise_dataset(monkeypatch):
    monkeypatch.setitem(spp_jax.data.DATASETS._entries, "noise", lambda *_: (RECORDS, {}))


@pytest.fixture
def call(cache, capsys):
    """Run a command line in this process: (exit status, standard output, standard error)."""

    def call(program, *arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = program.main([*map(str, arguments), "--cache-dir", str(cache)])
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    """The folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    spp_jax.data.DATASETS._entries["noise"] = lambda *_: (RECORDS, {})
    try:
        status = train.main([*QUICK, "--epochs", "2", "--out", str(folder), "--cache-dir", str(cache)])
    finally:
        del spp_jax.data.DATASETS._entries["noise"]
    assert status == 0
    return folder


def final_variables(folder: Path) -> nnx.State:
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore_model(nnx.state(create_model("compact", rngs=nnx.Rngs(0))))


class TestTrain:
    def test_a_run_leaves_checkpoints_figures_and_curves(self, trained):
        assert {path.name for path in trained.iterdir()} >= {
            "checkpoints",
            "metrics.json",
            "metrics.jsonl",
            "curves.png",
            "skipped.csv",
            "report.html",
            "run.json",
            "tensorboard",
        }
        facts = json.loads((trained / "run.json").read_text())
        assert facts["jax"] == jax.__version__
        assert facts["processes"] == 1
        assert facts["data"] == "noise"
        assert list((trained / "tensorboard").glob("events.*"))
        assert "noise, compact, fold 0: the validation part" in (trained / "report.html").read_text()
        lines = read_journal(trained)
        steps = [line["step"] for line in lines if "loss" in line]
        assert steps == list(range(1, len(steps) + 1))
        assert sum("validation" in line for line in lines) == 2
        figures = json.loads((trained / "metrics.json").read_text())
        assert figures["split"] == "test"
        assert figures["count"] == 8  # two of ten groups of four
        assert 0 <= figures["accuracy"] <= 1

    def test_a_folder_that_holds_a_run_is_not_written_over(self, trained, call):
        status, _, said = call(train, *QUICK, "--out", trained)
        assert status == 2
        assert "already holds a run: go on with it (--resume) or name another folder (--out)" in said

    def test_resume_refuses_another_configuration_and_names_the_fields(self, trained, call):
        status, _, said = call(train, "--resume", "--out", trained, "--seed", 5)
        assert status == 2
        assert "seed: 5, not 0" in said
        assert "data:" not in said  # what is not given is taken from the run

    def test_resume_refuses_other_records(self, trained, call, monkeypatch):
        monkeypatch.setitem(spp_jax.data.DATASETS._entries, "noise", lambda *_: (noise_records(seed=1), {}))
        status, _, said = call(train, "--resume", "--out", trained)
        assert status == 2
        assert "the data set has changed since" in said

    def test_dry_run_prints_the_plan_and_writes_nothing(self, call, tmp_path):
        status, printed, _ = call(train, *QUICK, "--dry-run", "--out", tmp_path / "run")
        assert status == 0
        assert "2 buckets" in printed
        assert printed.count(" x ") == 2 + 1  # one line a bucket, and the heading
        assert "MiB" in printed
        assert not (tmp_path / "run").exists()

    def test_dry_run_tells_what_a_compilation_costs_as_measured_once(self, cache, capsys, tmp_path):
        told = []
        arguments = [*QUICK, "--dry-run", "--out", tmp_path / "run", "--cache-dir", tmp_path / "cache"]
        for _ in range(2):  # the second time nothing is compiled, and what was measured is told
            assert train.main([*map(str, arguments)]) == 0
            printed = capsys.readouterr().out
            told += [line for line in printed.splitlines() if line.startswith("a compilation takes")]
        assert len(told) == 2
        assert told[0] == told[1]
        (price,) = (tmp_path / "cache" / "prices").iterdir()
        kept = json.loads(price.read_text())
        assert f"{kept['seconds'] * kept['pixels_per_second']:,.0f} pixels" in told[0]
        assert min(kept.values()) > 0

    def test_the_plan_is_left_in_the_folder_and_serves_another_run(self, trained, call, tmp_path):
        plan = trained / "buckets.json"
        assert (trained / "buckets.png").stat().st_size > 1000
        run = tmp_path / "run"
        status, _, said = call(train, "--data", "noise", "--plan", plan, "--steps", 1, "--out", run)
        assert status == 0
        assert "2 buckets" in said
        assert (run / "buckets.json").read_text() == plan.read_text()

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "this is no bucket plan"),
            (
                '{"format": 1, "buckets": [{"shape": [24, 24], "batch_size": 1}]}',
                "is larger than every bucket [[24, 24]]",
            ),
        ],
    )
    def test_a_plan_that_does_not_fit_is_said_in_a_line(self, call, tmp_path, text, said):
        (tmp_path / "plan.json").write_text(text)
        arguments = [*QUICK, "--plan", tmp_path / "plan.json", "--out", tmp_path / "run"]
        status, _, error = call(train, *arguments)
        assert status == 2
        assert said in error
        assert error.startswith(f"spp-jax train: --plan {tmp_path / 'plan.json'}: ")
        assert error.count("\n") == 1

    def test_buckets_that_do_not_fit_the_memory_are_named_before_training(self, call, tmp_path, monkeypatch):
        monkeypatch.setattr(programs, "device_memory", lambda device: 2**20)
        status, _, said = call(train, *QUICK, "--out", tmp_path / "run")
        assert status == 2
        assert "these do not fit the memory of 1 MiB of cpu: step, bucket " in said
        assert "Lower --pixels-per-step" in said
        assert not (tmp_path / "run").exists()

    def test_a_batch_larger_than_a_step_may_be_is_said(self, call, tmp_path):
        arguments = [*QUICK[:-1], 5000, "--batch-multiple", 2, "--dry-run", "--out", tmp_path / "run"]
        status, _, said = call(train, *arguments)
        assert status == 0
        assert "a batch of 2 of 56x64 either way has 7,168 pixels, more than --pixels-per-step 5,000" in said

    def test_pictures_that_cannot_be_read_are_named_listed_and_told_by_the_status(
        self, call, tmp_path, monkeypatch
    ):
        bad = {0: b"text", 1: b"more text"}

        def photo(index):
            return bad.get(index) or RECORDS.photo(index)

        records = dataclasses.replace(RECORDS, photo=photo)
        monkeypatch.setitem(spp_jax.data.DATASETS._entries, "noise", lambda *_: (records, {}))
        status, _, said = call(train, *QUICK, "--epochs", 1, "--out", tmp_path / "run")
        assert status == 3
        assert "skipped 2 photographs" in said
        listed = (tmp_path / "run" / "skipped.csv").read_text()
        assert "noise-000,is no picture" in listed
        assert "noise-001,is no picture" in listed

        shutil.rmtree(
            tmp_path / "run" / "checkpoints" / max(os.listdir(tmp_path / "run" / "checkpoints"), key=int)
        )
        (tmp_path / "run" / "skipped.csv").unlink()
        status, _, _ = call(train, "--resume", "--out", tmp_path / "run")
        assert status == 3
        assert (tmp_path / "run" / "skipped.csv").read_text() == listed

    def test_a_run_stops_when_more_than_the_allowed_share_cannot_be_read(self, call, tmp_path, monkeypatch):
        records = dataclasses.replace(RECORDS, photo=lambda i: b"text" if i < 4 else RECORDS.photo(i))
        monkeypatch.setitem(spp_jax.data.DATASETS._entries, "noise", lambda *_: (records, {}))
        arguments = [*QUICK, "--epochs", 1, "--out", tmp_path / "run"]
        status, _, said = call(train, *arguments, "--max-failed", 0.05)
        assert status == 1
        assert re.search(r"[34] of 40 pictures had to be skipped, more than --max-failed 0.05 allows", said)
        with Checkpoints(tmp_path / "run") as checkpoints:
            assert checkpoints.latest_step() is not None
        unread = dataclasses.replace(RECORDS, sizes=RECORDS.sizes * (np.arange(40) >= 3)[:, None])
        reasons = dict.fromkeys(RECORDS.ids[:3], "?")
        monkeypatch.setitem(spp_jax.data.DATASETS._entries, "noise", lambda *_: (unread, reasons))
        status, _, said = call(train, *QUICK, "--out", tmp_path / "other", "--max-failed", 0.05)
        assert status == 1
        assert "skipped noise-002: ?" in said
        assert "3 of 40 pictures had to be skipped" in said

    @pytest.mark.slow
    def test_trains_on_and_evaluates_a_users_own_folder(self, call, tmp_path):
        folder = tmp_path / "mine"
        folder.mkdir()
        lines = ["file,score,group"]
        for i in range(len(RECORDS)):
            (folder / f"{RECORDS.ids[i]}.png").write_bytes(bytes(RECORDS.photo(i)))  # pyright: ignore
            lines.append(f"{RECORDS.ids[i]}.png,{RECORDS.scores[i]:.4f},{RECORDS.groups[i]}")
        lines.append("gone.png,0.5,group-1")
        Image.fromarray(np.zeros((5, 60, 3), np.uint8)).save(folder / "low.png")
        lines.append("low.png,0.5,group-11")  # a group that a later split must know of, though it is dropped
        (folder / "scores.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
        own = ["--data", "folder", "--data-dir", folder]
        arguments = [*own, *QUICK[2:], "--epochs", 1, "--scales", 0.8, 1, "--max-pixels", 1500, "--out"]
        status, printed, said = call(train, *arguments, tmp_path / "run", "--protocol", "random")
        assert status == 3
        assert "skipped gone.png: scores.csv, line 42: there is no such file" in said
        assert "skipped low.png: is smaller than 8x8 pixels (height x width)" in said
        assert "test, random, fold 0: photographs never seen" in printed
        figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
        (tmp_path / "run" / "metrics.json").unlink()
        status, _, said = call(evaluate, "--checkpoint", tmp_path / "run", *own)
        assert status in (0, 3)  # whether the dropped ones belong to this part
        again = json.loads((tmp_path / "run" / "metrics.json").read_text())
        # In other shapes than training: scores agree to 1e-6, a correlation of few of them to a little less.
        assert again == {
            k: pytest.approx(v, rel=1e-5) if isinstance(v, float) else v for k, v in figures.items()
        }
        status, printed, _ = call(evaluate, "--checkpoint", tmp_path / "run", "--photos", folder)
        assert status == 3
        assert printed.count("noise-") == 40

    def test_a_run_that_diverges_stops_with_step_bucket_and_pictures_and_keeps_what_was_saved(
        self, call, tmp_path
    ):
        arguments = [*QUICK, "--epochs", 2, "--warmup", 0.99, "--learning-rate", 1e30, "--clip-norm", 1e30]
        status, _, said = call(train, *arguments, "--out", tmp_path / "run")
        assert status == 1
        assert "spp-jax train: the loss of step" in said
        assert "noise-0" in said
        assert "lower --learning-rate" in said
        with Checkpoints(tmp_path / "run") as checkpoints:
            assert checkpoints.latest_step() == 0

    def test_a_run_begins_with_another_ones_variables_and_freezes_what_it_is_told(
        self, trained, call, tmp_path
    ):
        arguments = [*QUICK, "--steps", 3, "--init-from", trained, "--freeze", "body/*", "--ema", 0.9]
        status, _, said = call(train, *arguments, "--out", tmp_path / "run")
        assert status == 0
        assert f"taken from {trained}: body/stages/0/conv/kernel, " in said
        assert re.search(r"body/\S+ and \d+ more\n", said)  # hundreds of names tell nobody more
        before, after = (nnx.to_pure_dict(final_variables(folder)) for folder in (trained, tmp_path / "run"))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after["body"], before["body"])
        assert (before["head"]["logits"]["kernel"] != after["head"]["logits"]["kernel"]).any()
        status, _, said = call(train, *QUICK, "--init-from", tmp_path / "none", "--out", tmp_path / "other")
        assert status == 2
        assert "holds no checkpoint of a run" in said

    @pytest.mark.slow
    def test_a_run_with_an_average_goes_on_where_it_stopped(self, call, tmp_path):
        arguments = [*QUICK, "--ema", 0.9, "--accumulate", 2, "--save-every", 2]
        call(train, *arguments, "--steps", 6, "--out", tmp_path / "whole")
        call(train, *arguments, "--steps", 6, "--out", tmp_path / "broken")
        shutil.rmtree(tmp_path / "broken" / "checkpoints" / "6")
        status, _, said = call(train, "--resume", "--out", tmp_path / "broken")
        assert status == 0
        assert re.search("resumed at step [45] of 6", said)  # 5 where an epoch ended best
        both = [final_variables(tmp_path / name) for name in ("whole", "broken")]
        jax.tree.map(np.testing.assert_array_equal, *both)

    @pytest.mark.slow
    def test_a_run_can_be_traced(self, call, tmp_path):
        arguments = [*QUICK, "--steps", 13, "--profile", 2, "--out", tmp_path / "run"]
        assert call(train, *arguments)[0] == 0
        assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))

    def test_told_to_stop_before_training_it_ends_as_interrupted(self, call, tmp_path, monkeypatch):
        def stop(*_, **__):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(job, "load_dataset", stop)
        status, _, said = call(train, *QUICK, "--out", tmp_path / "run")
        assert status == 75
        assert "interrupted; if anything was saved" in said
        assert signal.getsignal(signal.SIGTERM) is before

    @pytest.mark.parametrize("mib", [0, 1024])
    def test_pictures_decoded_once_or_in_each_epoch_give_the_same_run(
        self, call, trained, tmp_path, monkeypatch, mib
    ):
        asked = collections.Counter()

        def photo(i: int):
            asked[i] += 1
            return RECORDS.photo(i)

        counting = dataclasses.replace(RECORDS, photo=photo)
        monkeypatch.setitem(spp_jax.data.DATASETS._entries, "noise", lambda *_: (counting, {}))
        arguments = [*QUICK, "--epochs", 2, "--keep-mib", mib, "--out", tmp_path / "run"]
        assert call(train, *arguments)[0] == 0
        jax.tree.map(
            np.testing.assert_array_equal, final_variables(tmp_path / "run"), final_variables(trained)
        )
        assert (max(asked.values()) == 1) == (mib > 0)

    def test_a_warm_up_as_long_as_the_run_is_no_error(self, call, tmp_path):
        status, _, _ = call(train, *QUICK, "--steps", 1, "--warmup", 0.9, "--out", tmp_path / "run")
        assert status == 0

    @pytest.mark.slow
    def test_weights_of_another_library_are_taken_where_they_fit_and_the_rest_is_named(self, call, tmp_path):
        numpy = pytest.importorskip("safetensors.numpy")
        numpy.save_file(alexnet_tensors(), weights := tmp_path / "alexnet.safetensors")
        arguments = [*QUICK, "--model", "alexnet", "--steps", 1, "--remat", "--dtype", "bfloat16"]
        arguments += ["--max-failed", 1]  # AlexNet takes no picture below 31 pixels
        arguments += ["--freeze", "body/*", "--init-from", weights, "--out", tmp_path / "run"]
        status, _, said = call(train, *arguments)
        assert status == 3
        assert f"{weights}: classifier.1.bias, classifier.1.weight has no place here" in said
        assert f"taken from {weights}: body/stages/0/convs/0/bias, " in said
        assert "left as they begin, as they are not there in this shape: head/" in said
        with Checkpoints(tmp_path / "run") as checkpoints:
            found = checkpoints.model_variables()
        kernel = alexnet_tensors()["features.0.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(found["body/stages/0/convs/0/kernel"], kernel)
        narrow = alexnet_tensors() | {"features.0.weight": np.zeros((32, 3, 11, 11), np.float32)}
        numpy.save_file(narrow, weights)
        status, _, said = call(train, *arguments[:-1], tmp_path / "narrow")
        assert status == 2
        assert (
            "body/stages/0/convs/0/kernel has shape (11, 11, 3, 32) there, and (11, 11, 3, 64) here" in said
        )
        status, _, said = call(train, *QUICK, "--init-from", weights, "--out", tmp_path / "other")
        assert status == 2
        assert "taken by alexnet, vgg16, mna, resnet18, resnet50, not by compact" in said

    def test_a_file_system_that_only_reads_is_said_in_a_line(self, call, tmp_path):
        disk = tmp_path / "disk"
        disk.mkdir()
        if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk]).returncode:
            pytest.skip("no file system can be mounted here")
        try:
            status, _, said = call(train, *QUICK, "--steps", 1, "--out", disk / "run")
        finally:
            subprocess.run(["umount", disk], check=True)
        assert status == 1
        assert re.search("spp-jax train: .*Read-only file system", said)
        assert "compiled for" not in said  # said before the work is done

    def test_a_folder_that_cannot_be_written_is_said_in_a_line(self, call, tmp_path):
        (tmp_path / "file").write_text("not a folder")
        status, _, said = call(train, *QUICK, "--out", tmp_path / "file" / "run")
        assert status == 1
        assert "spp-jax train: " in said
        assert "Traceback" not in said

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--data", "nosuch"], "--data 'nosuch' is unknown; known are ava, "),
            (
                [*QUICK, "--loss", "nosuch"],
                "--loss 'nosuch' is unknown; known are ",
            ),
            ([*QUICK, "--loss", "emd"], "--loss emd needs a data set with votes"),
            (
                [*QUICK, "--freeze", "none"],
                "--freeze none: no parameter's path is like that; there are body/",
            ),
            ([*QUICK, "--coordinator", "a:1"], "give --coordinator, --processes and --process-id together"),
            ([*QUICK, "--model", "nosuch"], "model 'nosuch' is unknown; known are alexnet, compact"),
            ([*QUICK, "--levels", "0"], "--levels must be one or more integers >= 1, not (0,)"),
            ([*QUICK, "--levels", "-1"], "--levels"),
            ([*QUICK, "--fold", "9"], "fold 9 is unknown: folds numbers them 0 to 4"),
            ([*QUICK, "--epochs", "0"], "--epochs must be at least 1, not 0"),
            ([*QUICK, "--epochs", "many"], "many"),
            (["--nosuch"], "nosuch"),
        ],
    )
    def test_wrong_use_is_said_in_a_line_with_status_2(self, call, tmp_path, arguments, said):
        status, printed, error = call(train, *arguments, "--out", tmp_path / "run")
        assert status == 2
        assert said in printed + error
        assert "Traceback" not in printed + error
        assert not (tmp_path / "run").exists()


class TestEvaluate:
    def test_the_test_split_gives_the_figures_that_training_ended_with(self, trained, call):
        before = json.loads((trained / "metrics.json").read_text())
        status, printed, _ = call(evaluate, "--checkpoint", trained, "--data", "noise")
        assert status == 0
        assert "accuracy" in printed
        assert "truly good" in printed
        after = json.loads((trained / "metrics.json").read_text())
        assert after["confusion"] == before["confusion"]
        assert after["srcc"] == pytest.approx(before["srcc"], abs=1e-6)

    @pytest.mark.slow
    def test_the_judge_that_ships_scores_held_out_pictures_above_blurred_crops_of_them(self, call, tmp_path):
        damage = pytest.importorskip("spp_jax.data.distorted_photos.damage")
        sources = pytest.importorskip("spp_jax.data.distorted_photos.sources")
        try:
            photographs = {name: np.asarray(views[0]) for name, views in sources.find_sources().items()}
        except sources.MissingSourcesError as error:
            pytest.skip(str(error))
        names = tuple(photographs)
        sizes, zeros = np.array([p.shape[:2] for p in photographs.values()]), np.zeros(len(names), np.float32)
        everything = Records(names, sizes, list(photographs.values()).__getitem__, zeros, zeros > 0, names)
        with Checkpoints(Path(__file__).parents[1] / "checkpoints" / "compact") as checkpoints:
            config = checkpoints.about().config
        held_out = split_records(everything, "test", config.protocol, config.fold).ids
        assert len(held_out) == 3
        for name in held_out:
            whole = photographs[name]
            height, width, _ = whole.shape
            halves = {"left": np.s_[:, : width // 2], "right": np.s_[:, width // 2 :]}
            halves |= {"top": np.s_[: height // 2], "bottom": np.s_[height // 2 :]}
            for place, window in {"whole": np.s_[:], **halves}.items():
                complete = whole[window]
                h, w, _ = complete.shape
                crop = complete[h // 4 : h - h // 4, w // 4 : w - w // 4]
                blurred = damage.damaged(crop, "blur", 3, np.random.default_rng(0))
                (tmp_path / f"{name}-{place}-complete.png").write_bytes(png(complete))
                (tmp_path / f"{name}-{place}-crop.png").write_bytes(png(blurred))
        compact = ("--judge", "compact")
        assert call(evaluate, *compact, "--photos", tmp_path, "--out", tmp_path / "scores.json")[0] == 0
        scores = json.loads((tmp_path / "scores.json").read_text())
        complete = [score for file, score in scores.items() if file.endswith("complete.png")]
        crops = [score for file, score in scores.items() if file.endswith("crop.png")]
        assert len(complete) == len(crops) == 15
        assert np.mean(np.array(complete) > np.array(crops)) >= 0.9

    def test_another_split_goes_where_out_says(self, trained, call, tmp_path):
        status, _, _ = call(
            evaluate,
            "--checkpoint",
            trained,
            "--data",
            "noise",
            "--split",
            "train",
            "--out",
            tmp_path / "m.json",
        )
        assert status == 0
        assert json.loads((tmp_path / "m.json").read_text())["count"] > 20

    def test_another_protocol_begins_with_its_first_split(self, trained, call, tmp_path):
        """A judge trained on fold 2 of the folds: there is but one official split."""
        shutil.copytree(trained, run := tmp_path / "run")
        for about in (run / "checkpoints").glob("*/about/metadata"):
            fields = json.loads(about.read_text())
            fields["config"]["fold"] = 2
            del fields["config"]["refuse_seconds"], fields["digest"]  # as older ones lack them
            about.write_text(json.dumps(fields))
        for number in range(3):
            (tmp_path / f"{number}.png").write_bytes(RECORDS.photo(number))
        (tmp_path / "scores.csv").write_text("file,score,split\n0.png,1,train\n1.png,1,test\n2.png,0,test\n")
        given = ["--checkpoint", run, "--data", "folder", "--data-dir", tmp_path, "--protocol", "official"]
        status, printed, _ = call(evaluate, *given)
        assert status == 0
        assert printed.startswith("folder, test, official, fold 0\n")

    def test_figures_of_another_fold_do_not_replace_those_of_the_test_part(self, trained, call):
        before = (trained / "metrics.json").read_text()
        status, _, _ = call(evaluate, "--checkpoint", trained, "--data", "noise", "--fold", 1)
        assert status == 0
        assert (trained / "metrics.json").read_text() == before
        assert json.loads((trained / "metrics-test-fold1.json").read_text())["fold"] == 1

    def test_photographs_and_folders_are_scored_and_the_unreadable_named(self, trained, call, tmp_path):
        (tmp_path / "album" / "deep").mkdir(parents=True)
        (tmp_path / "album" / "b.png").write_bytes(RECORDS.photo(0))
        (tmp_path / "album" / "deep" / "a.PNG").write_bytes(RECORDS.photo(1))
        (tmp_path / "album" / "notes.txt").write_text("no picture, and not taken for one")
        (tmp_path / "text.jpg").write_text("I am text")
        (tmp_path / "small.png").write_bytes(png(np.zeros((4, 40, 3), np.uint8)))
        status, printed, said = call(
            evaluate,
            "--checkpoint",
            trained,
            "--photos",
            tmp_path / "album",
            tmp_path / "text.jpg",
            tmp_path / "small.png",
            tmp_path / "absent.png",
            tmp_path / ("long" * 100),
            "--out",
            tmp_path / "scores.json",
        )
        assert status == 3
        lines = printed.splitlines()
        assert sorted(Path(line.split(maxsplit=1)[1]).name for line in lines) == ["a.PNG", "b.png"]
        assert all(0 <= float(line.split()[0]) <= 1 for line in lines)
        assert f"skipped {tmp_path / 'text.jpg'}: is no picture in a format that can be read" in said
        assert "small.png: is 4 pixels high and 40 wide, smaller than the model takes" in said
        assert "absent.png: there is no such file" in said
        assert "4 photographs skipped" in said
        assert json.loads((tmp_path / "scores.json").read_text())[str(tmp_path / "text.jpg")] is None

    def test_folders_as_they_are_cost_none_of_their_photographs(self, trained, call, tmp_path):
        album = tmp_path / "album"
        for name in ("a.png", "@eaDir/a.png", "._a.png", ".trash/b.png"):
            (album / name).parent.mkdir(parents=True, exist_ok=True)
            (album / name).write_bytes(RECORDS.photo(0))
        for name in ("b.ICO", "c.psd", "d.psd", "e.NEF"):
            (album / name).write_bytes(b"FUJIFILMCCD-RAW" if name == "e.NEF" else b"")
        (tmp_path / "empty").mkdir()
        (tmp_path / "good.png").write_bytes(RECORDS.photo(1))
        photos = [tmp_path / name for name in ("album", "empty", "good.png")]
        status, printed, said = call(evaluate, "--checkpoint", trained, "--photos", *photos)
        assert status == 3
        scored = {line.split()[1] for line in printed.splitlines()}  # in the order in which they are read
        assert scored == {str(album / "a.png"), str(tmp_path / "good.png")}
        assert "not read, by ending: 2 .psd, 1 .ico\n" in said
        assert f"passed over: 3 hidden or system entries, such as {album / '._a.png'}\n" in said
        assert f"skipped {tmp_path / 'empty'}: is a folder without any picture" in said
        assert f"skipped {album / 'e.NEF'}: is a camera's raw file" in said
        assert "2 photographs skipped" in said

    def test_a_name_forges_no_line(self, trained, call, tmp_path):
        for name, content in (("\n0.999  best.png", RECORDS.photo(0)), ("\x1b[2J\u202egnp.png", b"text")):
            (tmp_path / name).write_bytes(content)
        status, printed, said = call(evaluate, "--checkpoint", trained, "--photos", tmp_path)
        assert status == 3
        assert printed.count("\n") == 1
        assert printed.endswith("\\x0a0.999  best.png\n")
        assert "\\x1b[2J\\u202egnp.png: is no picture" in said
        assert "\x1b" not in said

    def test_limits_of_scoring_are_options(self, trained, call, tmp_path):
        (photos := tmp_path / "photos").mkdir()
        (photos / "a.png").write_bytes(RECORDS.photo(0))
        with (tmp_path / "long").open("wb") as file:
            file.write(b"\xff\xd8\xff")
            file.truncate(10**9)
        given = ["--checkpoint", trained, "--photos", photos]
        assert "more than 10" in call(evaluate, *given, "--refuse-pixels", 10)[2]
        long = call(evaluate, *given, tmp_path / "long", "--refuse-seconds", "0.1")[2]
        assert "long: takes more than 0.1 seconds of processor time to read" in long
        assert call(evaluate, *given, "--refuse-seconds", "-1")[0] == 2
        assert call(evaluate, *given, "--refuse-seconds", "9")[0] == 0

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "give either --data NAME or --photos PATH"),
            (["--data", "noise", "--photos", "a.jpg"], "give either"),
            (["--data", "nosuch"], "--data 'nosuch' is unknown"),
            (
                ["--data", "noise", "--split", "dev"],
                "--split dev: unknown; known are train, validation, test",
            ),
            (["--data", "noise", "--fold", "7"], "fold 7 is unknown"),
            (["--photos", "EMPTY"], "is a folder without any picture"),
            (["--data", "noise", "--out", "no/such/figures.json"], "there is no folder"),
        ],
    )
    def test_wrong_use_is_said_in_a_line_with_status_2(self, trained, call, tmp_path, arguments, said):
        (tmp_path / "empty").mkdir()
        arguments = [str(tmp_path / "empty") if a == "EMPTY" else a for a in arguments]
        status, _, error = call(evaluate, "--checkpoint", trained, *arguments)
        assert status == 2
        assert said in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize("foreign", [False, True])
    def test_a_missing_or_foreign_checkpoint_is_said_in_a_line(self, call, tmp_path, foreign):
        if foreign:
            (tmp_path / "checkpoints" / "7").mkdir(parents=True)
            (tmp_path / "checkpoints" / "7" / "weights.bin").write_bytes(b"foreign")
        status, _, error = call(evaluate, "--checkpoint", tmp_path, "--data", "noise")
        assert status == 2
        assert "spp-jax evaluate: " in error
        assert "Traceback" not in error


@pytest.mark.parametrize("damage", ["truncated", "of another model"])
def test_a_damaged_checkpoint_is_said_in_a_line_by_both_programs_and_left_as_it_is(
    trained, call, tmp_path, damage
):
    shutil.copytree(trained, folder := tmp_path / "run")
    latest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    if damage == "truncated":
        truncate_arrays(latest, 0.5)
    else:  # it says that its pyramid is another one than that of its variables
        about = latest / "about" / "metadata"
        fields = json.loads(about.read_text())
        fields["config"]["levels"] = [1, 2]
        del fields["digest"]
        about.write_text(json.dumps(fields))
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for program, arguments in (
        (train, ["--resume", "--out"]),
        (evaluate, ["--data", "noise", "--checkpoint"]),
    ):
        status, _, said = call(program, *arguments, folder)
        assert status == 2
        (line,) = [
            line
            for line in said.splitlines()
            if line.startswith(f"spp-jax {program.__name__.rpartition('.')[2]}: ")
        ]
        assert str(latest) in line
        assert ("cannot be restored" if damage == "truncated" else "another model: model/") in line
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


class TestInterruption:
    """A run in a process of its own is killed, goes on, and ends where one that was not would."""

    CODE = """
import sys
sys.modules["torch"] = None  # which takes seconds, where it is there, and is not used
import tensorboardX
del sys.modules["torch"]
from conftest import noise_records
import spp_jax.data
from spp_jax.cli import train
spp_jax.data.DATASETS._entries["noise"] = lambda *_: (noise_records(), {})
sys.exit(train.main(sys.argv[1:]))
"""
    STEPS = 150
    ARGUMENTS = (*QUICK, "--buckets", "1", "--steps", str(STEPS), "--save-every", "10")

    @classmethod
    def start(cls, folder, cache, *arguments):
        here = Path(__file__).parent
        return subprocess.Popen(
            [sys.executable, "-c", cls.CODE, *arguments, "--out", str(folder), "--cache-dir", str(cache)],
            env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def interrupt(self, folder, cache, number) -> tuple[int, int]:
        """Send a signal once step 20 is saved: (exit status, latest step saved)."""
        process = self.start(folder, cache, *self.ARGUMENTS)
        ends = time.monotonic() + 300
        while not (folder / "checkpoints" / "20").is_dir() and process.poll() is None:
            assert time.monotonic() < ends
            time.sleep(0.005)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        with Checkpoints(folder) as checkpoints:
            step = checkpoints.latest_step()
        assert step is not None, said
        assert 20 <= step < self.STEPS, said
        return process.returncode, step

    @pytest.fixture(scope="class")
    @classmethod
    def uninterrupted(cls, cache, tmp_path_factory):
        folder = tmp_path_factory.mktemp("whole") / "run"
        process = cls.start(folder, cache, *cls.ARGUMENTS)
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        return folder

    @pytest.mark.slow
    def test_killed_twenty_times_at_random_by_one_command_line_it_ends_with_the_very_parameters(
        self, uninterrupted, cache, tmp_path
    ):
        folder, rng = tmp_path / "run", np.random.default_rng()  # other moments each time
        arguments = [*self.ARGUMENTS, "--resume"]
        until = 5.0  # it trains: seconds from its start, which differ from machine to machine
        for number in range(20):
            before = len(read_journal(folder))
            began = time.monotonic()
            process = self.start(folder, cache, *arguments)
            if number % 2:  # from when it trains on
                while len(read_journal(folder)) <= before and process.poll() is None:
                    assert time.monotonic() < began + 300
                    time.sleep(0.005)
                until = time.monotonic() - began
                time.sleep(rng.uniform(0, 0.5))
            else:  # before: while it imports, reads, compiles or goes back to what was saved
                time.sleep(rng.uniform(0.3, 1) * until)
            process.kill()
            process.communicate(timeout=60)
        self.ends_as(uninterrupted, folder, cache, *arguments)

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_ends_with_bit_equal_parameters(self, uninterrupted, cache, tmp_path, number):
        folder = tmp_path / "run"
        status, _ = self.interrupt(folder, cache, number)
        assert status == {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 75}[number]
        self.ends_as(uninterrupted, folder, cache)

    def ends_as(self, uninterrupted, folder, cache, *arguments):
        """Go on with the run, and compare."""
        process = self.start(folder, cache, *(arguments or ["--resume"]))
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        jax.tree.map(np.testing.assert_array_equal, final_variables(folder), final_variables(uninterrupted))
        # The journal has every step once, and the same figures.
        lines = [line for line in read_journal(folder) if "loss" in line]
        assert lines == [line for line in read_journal(uninterrupted) if "loss" in line]
        assert [line["step"] for line in lines] == list(range(1, self.STEPS + 1))


MANY_SHAPES = """
import collections, json, sys
import jax
from conftest import noise_records
import spp_jax.data
from spp_jax.cli import train
from spp_jax.testing import count_compilations
spp_jax.data.DATASETS._entries["noise"] = lambda *_: (noise_records(840, distinct=True), {})
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rsplit("/", 1)[-1]]))
with count_compilations() as count:
    status = train.main(sys.argv[1:])
print(json.dumps([status, count.compiled["step"], count.cached["step"], events["cache_misses"]]))
"""


@pytest.mark.slow
def test_hundreds_of_shapes_compile_once_a_bucket_in_use_and_a_second_start_misses_nothing(tmp_path):
    """At least 500 distinct shapes in the training part; the whole command line, in processes of its own."""
    sizes = noise_records(840, distinct=True).sizes
    assert len(np.unique(sizes, axis=0)) == 840  # of which three fifths are trained on
    here = Path(__file__).parent
    results = []
    for run in ("first", "second"):
        options = ["--data", "noise", "--buckets", "3", "--pixels-per-step", "60000", "--epochs", "1"]
        ran = subprocess.run(
            [sys.executable, "-c", MANY_SHAPES, *options, "--out", str(tmp_path / run)],
            env={
                **os.environ,
                "PYTHONPATH": f"{here}{os.pathsep}{here.parent}",
                "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
            },
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        results.append(json.loads(ran.stdout.splitlines()[-1]))
        assert "CompilationWarning" not in ran.stderr
    (status, compiled, cached, misses), second = results
    assert (status, compiled, cached) == (0, 3, 0)
    assert misses > 0
    assert second == [0, 0, 3, 0]


def test_help_shows_type_default_and_meaning_of_every_field(call):
    status, printed, _ = call(train, "--help")
    assert status == 0
    for name in RunConfig().to_dict():
        assert f"--{name.replace('_', '-')}" in printed
    assert "Peak of the learning rate" in printed
    assert "(default: 0.001)" in printed
