import os
import signal
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from conftest import noise_records
from test_package import imports

import spp_jax
from spp_jax import Scorer
from spp_jax.cli import score
from spp_jax.errors import SppJaxError, UsageError


def test_nothing_else_loads_ray():
    """But the module that is loaded by who asks for it."""
    package = Path(spp_jax.__file__).parent
    asking = [
        file.name for file in package.rglob("*.py") if any(n.split(".")[0] == "ray" for n in imports(file))
    ]
    assert asking == ["on_ray.py"]


def test_workers_are_those_of_ray(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(noise_records(1).photo(0))
    assert score.main([str(tmp_path), "--workers", "2", "--cache-dir", str(tmp_path / "cache")]) == 2
    assert "--workers=2 is for --engine ray" in capsys.readouterr().err


class TestWithRay:
    @pytest.fixture(autouse=True)
    def ray(self):
        return pytest.importorskip("ray", reason="ray is not installed: pip install 'spp_jax[ray]'")

    def test_wrong_use_is_said_before_anything_starts(self, ray):
        from spp_jax.scoring.on_ray import Judge, RayScorer

        with pytest.raises(UsageError, match="workers must be at least 1, not 0"):
            RayScorer(Judge(name="compact"), workers=0)
        with pytest.raises(UsageError, match="holds no checkpoint"):
            RayScorer(Judge("no/such"))
        scorer = RayScorer(Judge(name="compact"))
        assert list(scorer.stream([])) == []
        assert not ray.is_initialized()

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")  # of Ray, about itself
    def test_a_lost_worker_costs_nothing(self, tmp_path, monkeypatch, ray):
        from spp_jax.scoring.on_ray import Judge, RayScorer

        mark = uuid.uuid4().hex  # by which our workers are known from all other processes
        monkeypatch.setenv("SPP_JAX_TEST", mark)
        records = noise_records(60)
        photos = [tmp_path / f"{number:02d}.png" for number in range(60)]
        for number, photo in enumerate(photos):
            photo.write_bytes(records.photo(number))
        photos[7].write_bytes(b"text")
        photos[30].unlink()
        strange = tmp_path / os.fsdecode(b"\xff.png")
        photos[59] = photos[59].rename(strange)
        judge = Judge(name="compact", cache_dir=str(tmp_path / "cache"))
        stream = RayScorer(judge, workers=2).stream(photos)
        found = [next(stream)]
        victims = workers(mark)
        assert len(victims) == 2
        os.kill(victims[0], signal.SIGKILL)
        found += stream
        assert not ray.is_initialized()
        assert sorted(scored.place for scored in found) == list(range(60))
        expected = {scored.place: scored for scored in Scorer.from_pretrained("compact").stream(photos)}
        for scored in found:
            assert scored.reason == expected[scored.place].reason
            np.testing.assert_allclose(scored.score, expected[scored.place].score, rtol=1e-6)
        assert [scored.place for scored in sorted(found) if scored.reason] == [7, 30]
        wait_for(lambda: not workers(mark))

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")  # of Ray, about itself
    def test_a_photograph_that_ends_every_worker_is_told_and_costs_no_other(self, tmp_path, monkeypatch):
        from spp_jax.scoring import on_ray

        class Ends(on_ray._Worker):
            def __call__(self, batch):
                if any(b"03.png" in name for name in batch["photo"].to_pylist()):
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(batch)

        monkeypatch.setattr(on_ray, "_Worker", Ends)
        monkeypatch.setattr(on_ray, "_RETRIES", 1)
        monkeypatch.setattr(on_ray, "_TURNS", 2)  # so that others are lost with it
        records = noise_records(8)
        photos = [tmp_path / f"{number:02d}.png" for number in range(8)]
        for number, photo in enumerate(photos):
            photo.write_bytes(records.photo(number))
        judge = on_ray.Judge(name="compact", cache_dir=str(tmp_path / "cache"))
        found = list(on_ray.RayScorer(judge, workers=1).stream(photos))
        assert sorted(scored.place for scored in found) == list(range(8))
        assert {scored.place: "ended" in scored.reason for scored in found if scored.reason} == {3: True}
        expected = {scored.place: scored.score for scored in Scorer.from_pretrained("compact").stream(photos)}
        for scored in found:
            if not scored.reason:
                np.testing.assert_allclose(scored.score, expected[scored.place], rtol=1e-6)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")  # of Ray, about itself
    def test_what_a_worker_says_when_it_fails_is_said_here(self, tmp_path, monkeypatch):
        from spp_jax.scoring import on_ray

        class Fails(on_ray._Worker):
            def __init__(self, *arguments):
                raise OSError("the disk of this machine is full")

        monkeypatch.setattr(on_ray, "_Worker", Fails)
        (tmp_path / "a.png").write_bytes(noise_records(1).photo(0))
        scorer = on_ray.RayScorer(on_ray.Judge(name="compact"), workers=1)
        with pytest.raises(SppJaxError, match="the disk of this machine is full"):
            list(scorer.stream([tmp_path / "a.png"]))


def workers(mark):
    """Processes of Ray's workers that score, by their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = mark.encode() in (folder / "environ").read_bytes()
            if (
                ours
                and b"ray::" in (folder / "cmdline").read_bytes()
                and b"MapWorker" in (folder / "cmdline").read_bytes()
            ):
                found.append(int(folder.name))
        except OSError:  # it is gone, or another user's
            continue
    return found


def wait_for(done, seconds=60):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)
