import csv
import json
import math
import os

import numpy as np
import pytest
from conftest import noise_records, png

from spp_jax.cli import score
from spp_jax.cli.scored import ScoreFile, score_paths
from spp_jax.errors import UsageError
from spp_jax.scoring import Scored

RECORDS = noise_records(6)


class Judge:
    """Scores a file by its length; stops where it is told to, as a kill would."""

    attributes = ("score",)

    def __init__(self, stops_after=math.inf):
        self.asked, self.stops_after = [], stops_after

    def stream(self, photos):
        for place, photo in enumerate(photos):
            if place >= self.stops_after:
                raise KeyboardInterrupt
            self.asked.append(photo.name)
            length = photo.stat().st_size if photo.exists() else 0
            yield (
                Scored(place, length / 2**20, "")
                if length
                else Scored(place, math.nan, "there is no such file")
            )


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos, of mine"
    folder.mkdir()
    paths = [folder / f'{number} "x".png' for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(RECORDS.photo(number))
    return [*paths, folder / "gone.png"]


def run(judge, photos, out, checkpoint="a"):
    with ScoreFile(out, checkpoint) as file:
        return score_paths(judge, photos, file.keep, file.kept(photos))


def rows(out):
    if out.suffix == ".csv":
        with out.open(newline="") as file:
            return list(csv.DictReader(file))
    text = out.read_text()
    return json.loads(text) if out.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
class TestScoreFile:
    def test_goes_on_after_a_kill_and_says_the_same(self, photos, tmp_path, capsys, ending):
        out, whole = tmp_path / f"scores.{ending}", tmp_path / f"whole.{ending}"
        assert run(Judge(), photos, whole) == 3
        said = capsys.readouterr()
        with pytest.raises(KeyboardInterrupt):
            run(Judge(stops_after=3), photos, out)
        lines = out if out.exists() else tmp_path / f"{out.name}.part"
        with lines.open("a") as file:  # a line that the kill broke off
            file.write('{"photo": "bro' if ending != "csv" else '"bro')
        capsys.readouterr()
        judge = Judge()
        assert run(judge, photos, out) == 3
        assert judge.asked == [path.name for path in photos[3:]]
        assert rows(out) == rows(whole)
        assert capsys.readouterr() == said
        assert not (tmp_path / f"{out.name}.part").exists()
        again = Judge()
        run(again, photos, out)
        assert again.asked == []

    def test_a_changed_file_or_another_checkpoint_is_scored_again(self, photos, tmp_path, ending):
        out = tmp_path / f"scores.{ending}"
        run(Judge(), photos, out)
        photos[0].write_bytes(RECORDS.photo(5))
        os.utime(photos[1], ns=(1, 1))
        photos[-1].write_bytes(RECORDS.photo(0))
        judge = Judge()
        assert run(judge, photos, out) == 0
        assert judge.asked == [photos[i].name for i in (0, 1, 6)]
        assert sorted(row["photo"] for row in rows(out)) == sorted(map(str, photos))
        other = Judge()
        run(other, photos[:2], out, checkpoint="b")
        assert len(other.asked) == 2
        assert {row["checkpoint"] for row in rows(out)} == {"a", "b"}  # the others' scores are not lost

    def test_another_file_is_not_overwritten(self, tmp_path, ending):
        out = tmp_path / f"scores.{ending}"
        out.write_text("my thesis\n")
        with pytest.raises(UsageError, match="is there, and holds no scores"):
            ScoreFile(out, "a")
        assert out.read_text() == "my thesis\n"


@pytest.mark.parametrize(("name", "said"), [("a.txt", "ends in .csv"), ("no/a.csv", "there is no folder")])
def test_where_scores_cannot_go_is_said_first(tmp_path, name, said):
    with pytest.raises(UsageError, match=said):
        ScoreFile(tmp_path / name, "a")


class TestCommand:
    def test_scores_folders_and_says_what_it_would_compile(self, photos, tmp_path, capsys):
        photos[0].with_name("bad.jpg").write_bytes(b"text")
        out = tmp_path / "scores.csv"
        arguments = [str(photos[0].parent), "--judge", "compact", "--out", str(out)]
        arguments += ["--cache-dir", str(tmp_path / "cache")]
        assert score.main([*arguments, "--dry-run"]) == 0
        assert "to be compiled" in capsys.readouterr().out
        assert not out.exists()
        assert score.main(arguments) == 3
        first = capsys.readouterr()
        assert len(first.out.splitlines()) == 6
        assert "bad.jpg: is no picture" in first.err
        found = {row["photo"]: row["score"] for row in rows(out)}
        assert sum(bool(value) for value in found.values()) == 6
        assert score.main(arguments) == 3
        assert sorted(capsys.readouterr().out.splitlines()) == sorted(first.out.splitlines())

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "give photographs"),
            (["a.png", "--programs", "0"], "--programs must be at least 1, not 0"),
            (["a.png", "--out", "a.doc"], "give a name that ends in"),
            (["a.png", "--checkpoint", "no"], "holds no checkpoint"),
        ],
    )
    def test_wrong_use_is_one_line(self, tmp_path, capsys, arguments, said):
        (tmp_path / "a.png").write_bytes(png(np.zeros((20, 20, 3), np.uint8)))
        arguments = [str(tmp_path / a) if a in ("a.png", "no") else a for a in arguments]
        assert score.main([*arguments, "--cache-dir", str(tmp_path / "cache")]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1
