import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import noise_records, png

from spp_jax.addresses import stamp
from spp_jax.cli import score
from spp_jax.cli.gathering import Gathering
from spp_jax.cli.score_file import ScoreFile
from spp_jax.cli.scored import score_paths
from spp_jax.config import Decoding, RunConfig
from spp_jax.data.exif import Facts
from spp_jax.errors import UsageError
from spp_jax.scoring import Entry, Scored

RECORDS = noise_records(6)


class Judge:
    """Scores a file by its length; stops where it is told to, as a kill would."""

    digest = "a"

    def __init__(self, stops_after=math.inf, attributes=("score",)):
        self.asked, self.stops_after, self.attributes = [], stops_after, attributes
        self.config = RunConfig()

    def stream(self, photos):
        for place, photo in enumerate(photos):
            if place >= self.stops_after:
                raise KeyboardInterrupt
            self.asked.append(photo.name)
            length = stamp(photo)[0] if photo.exists() else 0
            score = length / 2**16
            if len(self.attributes) > 1:
                score = np.array([score, 1 - score], np.float32)
            yield Scored(place, score, "") if length else Scored(place, math.nan, "there is no such file")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos, of mine"
    folder.mkdir()
    paths = [folder / f'{number} "x".png' for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(RECORDS.photo(number))
    return [*paths, folder / "gone.png"]


def run(judge, photos, out, checkpoint="a"):
    with (
        ScoreFile(out, checkpoint) as file,
        Gathering(photos, [photo.name for photo in photos], Decoding(), file) as gathering,
    ):
        kept = [Scored(entry.place, entry.scores, entry.reason) for entry in gathering.kept]
        status = score_paths(judge, photos, gathering.keep, kept)
        file.finish(gathering.entries(0))
        return status


def rows(out):
    if out.suffix == ".csv":
        with out.open(newline="") as file:
            return list(csv.DictReader(file))
    if out.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(out).to_pylist()
    text = out.read_text()
    return json.loads(text) if out.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def write_parquet(out, rows):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), out)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
class TestScoreFile:
    @pytest.fixture(autouse=True)
    def pyarrow(self, ending):
        if ending == "parquet":
            pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'spp_jax[parquet]'")

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

    def test_what_follows_from_all_is_there_at_the_end(self, photos, tmp_path, ending):
        out = tmp_path / f"scores.{ending}"
        with pytest.raises(KeyboardInterrupt):
            run(Judge(stops_after=4), photos, out)
        lines = out if ending in ("csv", "jsonl") else tmp_path / f"{out.name}.part"
        before = lines.read_text()
        run(Judge(), photos[:2], out)
        run(Judge(), photos, out)
        assert before  # streamed
        found = rows(out)
        assert [row["photo"] for row in found] == [str(photo) for photo in photos]
        lengths = [photo.stat().st_size for photo in photos[:6]]
        ranks = [1 + sum(other > length for other in lengths) for length in lengths]
        assert [int(row["rank"]) for row in found[:6]] == ranks
        assert max(float(row["percentile"]) for row in found[:6]) == 100
        sizes = [[int(row["height"]), int(row["width"])] for row in found[:6]]
        assert sizes == RECORDS.sizes.tolist()
        assert found[6]["rank"] in ("", None)
        assert found[6]["reason"] == "there is no such file"

    def test_lines_of_other_photographs_keep_their_scores_and_have_no_rank(self, photos, tmp_path, ending):
        out = tmp_path / f"scores.{ending}"
        run(Judge(), photos[:3], out)
        run(Judge(), photos[3:6], out)
        found = {row["photo"]: row for row in rows(out)}
        assert len(found) == 6
        assert all(row["score"] for row in found.values())
        assert [bool(found[str(photo)]["rank"]) for photo in photos[:6]] == [False] * 3 + [True] * 3

    def test_an_older_versions_file_is_read_and_filled_in(self, photos, tmp_path, ending):
        out = tmp_path / f"scores.{ending}"
        run(Judge(), photos, out)
        old = ["photo", "score", "reason", "bytes", "changed", "checkpoint"]
        kept = [{name: row[name] for name in old} for row in rows(out)]
        if ending == "csv":
            with out.open("w", newline="") as file:
                writer = csv.DictWriter(file, old, lineterminator="\n")
                writer.writeheader()
                writer.writerows(kept)
        elif ending == "json":
            out.write_text(json.dumps(kept))
        elif ending == "parquet":
            write_parquet(out, kept)
        else:
            out.write_text("".join(json.dumps(row) + "\n" for row in kept))
        judge = Judge()
        run(judge, photos, out)
        assert judge.asked == []
        assert [int(row["height"]) for row in rows(out)[:6]] == RECORDS.sizes[:, 0].tolist()

    def test_a_file_of_other_things_judged_is_refused_in_a_line(self, photos, tmp_path, ending):
        out = tmp_path / f"scores.{ending}"
        with (
            ScoreFile(out, "a", ("quality", "beauty")) as file,
            Gathering(photos, [""] * 7, Decoding(), file),
        ):
            for place, photo in enumerate(photos):
                file.keep(Entry(place, photo, "", np.array([0.1, 0.2], np.float32)))
        before = out.read_bytes()
        for attributes in (("quality",), ("quality", "beauty", "fame")):
            with pytest.raises(UsageError, match="beauty") as refused:
                ScoreFile(out, "a", attributes)
            assert "\n" not in str(refused.value)
        assert out.read_bytes() == before

    @pytest.mark.parametrize("column", ["taken", "look", "width"])
    def test_cells_that_are_none_of_ours_are_refused(self, photos, tmp_path, ending, column):
        out = tmp_path / f"scores.{ending}"
        run(Judge(), photos[:1], out)
        row = rows(out)[0] | {column: "odd"}
        text = f"[{json.dumps(row)}]" if ending == "json" else json.dumps(row) + "\n"
        if ending == "csv":
            text = (
                ",".join(row)
                + "\n"
                + ",".join(f'"{cell}"'.replace(' "x"', "") for cell in row.values())
                + "\n"
            )
        if ending == "parquet":
            write_parquet(out, [row])
        else:
            out.write_text(text)
        with pytest.raises(UsageError, match="holds no scores"):
            ScoreFile(out, "a")

    def test_what_is_judged_may_be_called_as_a_column_is(self, photos, tmp_path, ending):
        out = tmp_path / f"scores.{ending}"
        for _ in range(2):
            with ScoreFile(out, "a", ("rank", "beauty")) as file:
                file.keep(Entry(0, photos[0], "", np.array([0.25, 0.5], np.float32)))
        (row,) = rows(out)
        assert [float(row[name]) for name in ("rank (score)", "beauty")] == [0.25, 0.5]

    @pytest.mark.parametrize("beside", ["", ".all"])
    @pytest.mark.parametrize("content", ["[" * 10**5, "[3]\n", "{}", "null", "my,thesis\n", "photo,photo\n"])
    def test_whatever_is_there_and_holds_no_scores_stays(self, tmp_path, ending, beside, content):
        out = tmp_path / f"scores.{ending}"
        file = tmp_path / f"{out.name}{beside}"
        file.write_text(content)
        with pytest.raises(UsageError, match="holds no scores") as refused:
            ScoreFile(out, "a")
        assert str(file) in str(refused.value)
        assert "\n" not in str(refused.value)
        assert file.read_text() == content

    def test_a_name_need_not_be_text(self, tmp_path, ending):
        strange = tmp_path / os.fsdecode(b"\xff.png")
        try:
            strange.write_bytes(RECORDS.photo(0))
        except OSError:
            pytest.skip("this file system takes no such names")
        out = tmp_path / f"scores.{ending}"
        for asked in ([strange.name], []):
            judge = Judge()
            assert run(judge, [strange], out) == 0
            assert judge.asked == asked
            assert len(rows(out)) == 1

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


@pytest.mark.parametrize(
    "name", ["=1+1.png", "@a.png", "-x.png", "'=1+1.png", "a;=1+1.png", "a\n=1.png", "\udcff.png"]
)
def test_no_name_in_a_csv_is_a_formula_and_each_is_found_again(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    plain, photo = Path("plain.png"), Path(name)
    for path in (plain, photo):
        path.write_bytes(png(np.zeros((8, 9, 3), np.uint8)))
    out = tmp_path / "scores.csv"
    run(Judge(), [plain, photo], out)
    with out.open(newline="", encoding="utf-8") as file:
        cell = list(csv.reader(file))[2][0]
    assert cell[0] not in "=+-@\t\r\n"
    assert cell.removeprefix("'").encode("utf-8", "backslashreplace").decode() in cell
    judge = Judge()
    run(judge, [plain, photo], out)
    assert judge.asked == []
    if ";" in name:
        assert f'"{name}"' in out.read_text()


class TestCommand:
    def test_scores_folders_and_says_what_it_would_compile(self, photos, tmp_path, capsys):
        photos[0].with_name("bad.jpg").write_bytes(b"text")
        out = tmp_path / "scores.csv"
        arguments = [str(photos[0].parent), "--judge", "compact", "--out", str(out)]
        arguments += ["--cache-dir", str(tmp_path / "cache")]
        assert score.main([*arguments, "--dry-run"]) == 0
        told = capsys.readouterr().out
        assert "to be compiled" in told
        assert "what a compilation takes was not measured here yet" in told
        assert not out.exists()
        assert score.main(arguments) == 3
        first = capsys.readouterr()
        assert len(first.out.splitlines()) == 6
        assert "bad.jpg: is no picture" in first.err
        found = {row["photo"]: row["score"] for row in rows(out)}
        assert sum(bool(value) for value in found.values()) == 6
        assert score.main(arguments) == 3
        assert sorted(capsys.readouterr().out.splitlines()) == sorted(first.out.splitlines())
        assert score.main([*arguments, "--dry-run"]) == 0
        assert "a compilation takes" in capsys.readouterr().out

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


class TestGathering:
    def test_the_header_of_what_was_skipped_is_not_read_again(self, photos, tmp_path, monkeypatch):
        asked = []

        def facts(photo, decoding):
            asked.append((photo.name, decoding.refuse_seconds))
            return Facts(3, 4)

        monkeypatch.setattr("spp_jax.cli.gathering.photo_facts", facts)
        decoding = Decoding(refuse_seconds=0.5)
        with Gathering(photos, [photo.name for photo in photos], decoding, None) as gathering:
            for scored in Judge().stream(photos):
                gathering.keep(photos[scored.place], scored)
            found = gathering.entries(0)
        assert asked == [(photo.name, 0.5) for photo in photos[:6]]
        assert [entry.height for entry in found] == [3] * 6 + [None]

    def test_a_line_that_cannot_be_written_ends_it(self, photos, tmp_path, monkeypatch):
        def full(self, entry):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ScoreFile, "keep", full)
        with pytest.raises(OSError, match="No space"):
            run(Judge(), photos, tmp_path / "scores.csv")
