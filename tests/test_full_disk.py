"""A disk that is full: a line says of what; what is known is said, and what only tells stops nothing."""

import contextlib
import json
import logging
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import noise_records
from test_datasets import MAKE

import spp_jax.data
from spp_jax.buckets import Bucket
from spp_jax.checkpoints import Checkpoints
from spp_jax.cli import evaluate, train
from spp_jax.config import Decoding
from spp_jax.data import load_dataset
from spp_jax.data.columns import write_columns
from spp_jax.run import journal as journal_module
from spp_jax.run.features import Features, keep_features, kept_features
from spp_jax.run.journal import Journal, read_journal
from spp_jax.scoring import programs
from spp_jax.scoring.programs import Programs
from spp_jax.scoring.shipped import shipped

FULL = r"(No space left on device|File too large)"


@pytest.fixture(params=["a full disk", "a limit of files"])
def full(request, tmp_path):
    """A folder, and a context in which nothing of more than a few bytes can be written there."""
    folder = tmp_path / "disk"
    folder.mkdir()

    @contextlib.contextmanager
    def limited(leave: int) -> Iterator[None]:
        """By the system's limit of a file's length, which everyone may lower."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (leave, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    @contextlib.contextmanager
    def filled(leave: int) -> Iterator[None]:
        free = os.statvfs(folder)
        (folder / "fill").write_bytes(bytes(free.f_bavail * free.f_bsize - leave // 4096 * 4096))
        try:
            yield
        finally:
            (folder / "fill").unlink()

    if request.param == "a limit of files":
        yield folder, limited
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder, filled
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("leave", [500, 2500, 14000])
def test_a_data_set_that_cannot_be_prepared_is_said_and_is_prepared_once_there_is_room(full, tmp_path, leave):
    folder, within = full
    (tmp_path / "manual" / "biq2021").mkdir(parents=True)
    MAKE["biq2021"](tmp_path / "manual" / "biq2021")
    (folder / "manual").symlink_to(tmp_path / "manual")
    with within(leave), contextlib.redirect_stdout(None):
        try:
            load_dataset("biq2021", folder, Decoding())
        except OSError as error:
            said = str(error)
        else:
            pytest.skip("it fits")
    assert f"biq2021 cannot be prepared in {folder}/" in said
    assert any(reason in said for reason in ("No space left on device", "File too large"))
    assert "\n" not in said
    records, skipped = load_dataset("biq2021", folder, Decoding())
    assert len(records) == 3
    assert not skipped


def test_a_journal_that_cannot_be_written_is_named_and_its_whole_lines_stay(full, monkeypatch):
    monkeypatch.setattr(journal_module, "_Board", lambda *_: None)  # its files are closed as they can be
    folder, within = full
    journal = Journal(folder, 0)
    journal.write({"step": 1, "loss": 0.5, "accuracy": 1.0, "pictures": 8})
    journal.flush()
    with within(0):
        journal.write({"step": 2, "loss": 0.5, "accuracy": 1.0, "pictures": 8, "skipped": {"a": "x" * 5000}})
        with pytest.raises(OSError, match=rf"metrics\.jsonl cannot be written: {FULL}"):
            journal.flush()
        with contextlib.suppress(OSError):  # so it is said at the latest
            journal.close()
    assert [line["step"] for line in read_journal(folder)] == [1]


def test_what_is_kept_for_the_next_start_alone_stops_nothing_and_leaves_nothing_half_written(
    full, caplog, monkeypatch
):
    folder, within = full
    features = Features(np.zeros((100, 10), np.float32), {})
    ids = tuple(map(str, range(100)))
    made = Programs(print, lambda bucket: (), most=1, key="a judge")
    monkeypatch.setattr(programs, "executables_folder", lambda: folder)
    monkeypatch.setattr(programs.serialize_executable, "serialize", lambda call: (bytes(5000), None, None))
    caplog.set_level(logging.INFO)
    with within(0):
        keep_features(folder / "new" / "features.npz", ids, features)
        with pytest.raises(OSError, match=FULL):
            write_columns(folder / "index.npz", 1, {"a": np.zeros(1000)})
        made._keep(Bucket((8, 8), 1), None)
    assert "features cannot be kept in" in caplog.text
    assert "8x8x1x0.executable is not kept" in caplog.text
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    keep_features(folder / "new" / "features.npz", ids, features)
    assert kept_features(folder / "new" / "features.npz", ids) is not None


@pytest.fixture
def noise(monkeypatch, compiled_once, capsys):
    monkeypatch.setitem(spp_jax.data.DATASETS._entries, "noise", lambda *_: (noise_records(), {}))

    def call(program, *arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        status = program.main([*map(str, arguments), "--cache-dir", str(compiled_once)])
        return status, *capsys.readouterr()

    return call


def test_figures_that_cannot_be_written_are_printed(noise, tmp_path):
    (tmp_path / "figures.json").symlink_to("/dev/full")
    arguments = ["--checkpoint", shipped("compact"), "--data", "noise", "--out", tmp_path / "figures.json"]
    status, printed, said = noise(evaluate, *arguments)
    assert status == 1
    assert "accuracy" in printed
    assert f"the figures are not kept: {tmp_path}/figures.json cannot be written: No space left" in said
    (tmp_path / "a.png").write_bytes(bytes(noise_records().photo(0)))  # pyright: ignore
    arguments = ["--checkpoint", shipped("compact"), "--photos", tmp_path, "--out", tmp_path / "figures.json"]
    status, printed, said = noise(evaluate, *arguments)
    assert status == 1
    assert "a.png" in printed
    assert "figures.json cannot be written: No space left" in said


@pytest.mark.slow
def test_a_run_whose_disk_is_full_of_all_but_its_checkpoints_goes_on(noise, tmp_path, monkeypatch):
    """Curves, report, figures and the description only tell."""
    write = Path.write_bytes, Path.write_text

    def full(own):
        def written(path, *arguments, **options):
            if path.suffix in (".png", ".html", ".json", ".csv") and path.parent == tmp_path / "run":
                raise OSError(28, "No space left on device")
            return own(path, *arguments, **options)

        return written

    monkeypatch.setattr(Path, "write_bytes", full(write[0]))
    monkeypatch.setattr(Path, "write_text", full(write[1]))
    quick = ["--data", "noise", "--buckets", "1", "--pixels-per-step", "20000", "--steps", "1"]
    status, printed, said = noise(train, *quick, "--out", tmp_path / "run")
    assert status == 0
    assert "accuracy" in printed
    for name in ("what the run is", "metrics.json", "curves.png", "report.html", "skipped.csv"):
        assert f"{name} cannot be written: " in said
    assert "Traceback" not in said
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() == 1
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1
