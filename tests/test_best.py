"""`spp-jax score` and the best of a folder: sorted, topped, picked of series, copied, linked, given stars."""

import csv
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from test_formats import dng
from test_score_command import Judge, rows

from spp_jax.cli import score
from spp_jax.cli.program import flags_of
from spp_jax.cli.xmp import rating_in


def picture(seed: int) -> Image.Image:
    """One that looks like no other, and like itself at any size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC)


def jpeg(seed: int, taken: str = "", quality: int = 90, size=(96, 64), rating: int = 0) -> bytes:
    exif = Image.Exif()
    if taken:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = f"2024:05:01 {taken}"
    if rating:
        exif[18246] = rating
    file = io.BytesIO()
    picture(seed).resize(size).save(file, "JPEG", quality=quality, exif=exif)
    return file.getvalue()


class Scripted(Judge):
    """Scores by the number that a file's name begins with, in hundredths."""

    def stream(self, photos):
        for scored in super().stream(photos):
            if scored.reason:
                yield scored
                continue
            value = int(photos[scored.place].name[:2]) / 100
            one = len(self.attributes) == 1
            yield scored._replace(score=value if one else np.array([value, 1 - value], np.float32))


@pytest.fixture
def folder(tmp_path):
    """A burst, two that look alike, one alone, one that is none: scores 66 71, 40 30, 90."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    (folder / "66.jpg").write_bytes(jpeg(1, "12:00:00"))
    (folder / "71.jpg").write_bytes(jpeg(2, "12:00:02"))
    (folder / "40.jpg").write_bytes(jpeg(3))
    (folder / "sub" / "30.jpg").write_bytes(jpeg(3, quality=40, size=(48, 32)))
    (folder / "90.jpg").write_bytes(jpeg(4, "15:00:00"))
    return folder


@pytest.fixture
def judge(monkeypatch):
    found = Scripted()
    monkeypatch.setattr(score.Scorer, "from_pretrained", lambda name, programs: found)
    return found


@pytest.fixture
def command(tmp_path, folder, judge):
    def run(*arguments, photos=(folder,)):
        given = [*map(str, photos), *map(str, arguments), "--cache-dir", str(tmp_path / "cache")]
        return score.main(given)

    return run


def said(capsys) -> list[str]:
    """Scores and names, in the order in which they are said."""
    return [
        f"{line[:5]} {Path(line[7:].split('  (')[0]).name}" for line in capsys.readouterr().out.splitlines()
    ]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestOrder:
    def test_as_they_come(self, command, capsys):
        assert command() == 0
        assert said(capsys) == [
            "0.400 40.jpg",
            "0.660 66.jpg",
            "0.710 71.jpg",
            "0.900 90.jpg",
            "0.300 30.jpg",
        ]

    @pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
    def test_sorted_the_best_are_said_first_and_stand_first(self, command, tmp_path, capsys, ending):
        out = tmp_path / f"scores.{ending}"
        assert command("--sort", "--out", out) == 0
        assert said(capsys) == [
            "0.900 90.jpg",
            "0.710 71.jpg",
            "0.660 66.jpg",
            "0.400 40.jpg",
            "0.300 30.jpg",
        ]
        assert [int(row["rank"]) for row in rows(out)] == [1, 2, 3, 4, 5]
        assert [float(row["percentile"]) for row in rows(out)] == [100, 80, 60, 40, 20]

    @pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
    def test_top_says_and_writes_the_best_alone_and_scores_none_again(
        self, command, judge, tmp_path, capsys, ending
    ):
        out = tmp_path / f"scores.{ending}"
        assert command("--top", 2, "--out", out) == 0
        assert said(capsys) == ["0.900 90.jpg", "0.710 71.jpg"]
        assert [Path(row["photo"]).name for row in rows(out)] == ["90.jpg", "71.jpg"]
        judge.asked.clear()
        assert command("--top", 3, "--out", out) == 0
        assert [int(row["rank"]) for row in rows(out)] == [1, 2, 3]
        assert command("--out", out) == 0
        assert judge.asked == []
        assert len(rows(out)) == 5
        assert not out.with_name(f"{out.name}.all").exists()
        assert command("--top", 1, "--out", out) == 0  # none of what was there is lost
        assert command("--out", out) == 0
        assert judge.asked == []

    def test_top_of_fewer_is_all(self, command, capsys):
        command("--top", 99)
        assert len(said(capsys)) == 5

    def test_the_attribute_decides(self, command, judge, tmp_path, capsys):
        judge.attributes = ("quality", "beauty")
        out = tmp_path / "scores.csv"
        assert command("--attribute", "beauty", "--top", 1, "--out", out) == 0
        assert capsys.readouterr().out.splitlines()[0] == "quality  beauty"
        (row,) = rows(out)
        assert (row["quality"], row["beauty"][:4], row["rank"]) == ("0.30000001192092896", "0.69", "1")
        assert command("--attribute", "fame") == 2
        assert "--attribute fame is not judged; judged are quality, beauty" in capsys.readouterr().err


class TestSeries:
    def test_one_pick_a_series_told_why(self, command, tmp_path, capsys):
        out = tmp_path / "scores.csv"
        assert command("--best-of-series", "--out", out) == 0
        assert [
            line.split("  ", 1)[1].split("photos/")[1] for line in capsys.readouterr().out.splitlines()
        ] == [
            "40.jpg  (best of 2 that look alike: 0.40 against 0.30)",
            "71.jpg  (best of 2 taken within 2 s: 0.71 against 0.66)",
            "90.jpg",
        ]
        found = {Path(row["photo"]).name: (row["series"], row["pick"], row["why"]) for row in rows(out)}
        assert found == {
            "40.jpg": ("1", "yes", "best of 2 that look alike: 0.40 against 0.30"),
            "30.jpg": ("1", "no", ""),
            "66.jpg": ("2", "no", ""),
            "71.jpg": ("2", "yes", "best of 2 taken within 2 s: 0.71 against 0.66"),
            "90.jpg": ("", "yes", ""),
        }

    def test_without_it_there_are_no_series(self, command, tmp_path):
        command("--out", tmp_path / "scores.json")
        assert {(row["series"], row["pick"], row["why"]) for row in rows(tmp_path / "scores.json")} == {
            (None, None, "")
        }

    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            (["--burst-seconds", "1.9"], ["40", "66", "71", "90"]),
            (["--burst-seconds", "-1", "--no-look-alikes"], ["40", "66", "71", "90", "30"]),
            (["--no-look-alikes"], ["40", "71", "90", "30"]),
            (["--burst-seconds", "20000"], ["40", "90"]),
        ],
    )
    def test_what_makes_a_series_is_settable(self, command, capsys, arguments, names):
        assert command("--best-of-series", *arguments) == 0
        assert [name[6:8] for name in said(capsys)] == names

    def test_the_top_is_of_picks(self, command, capsys):
        command("--best-of-series", "--top", 2)
        assert said(capsys) == ["0.900 90.jpg", "0.710 71.jpg"]
        command("--best-of-series", "--top", 3)
        assert said(capsys)[-1] == "0.400 40.jpg"

    def test_looks_are_kept(self, command, tmp_path, monkeypatch):
        out = tmp_path / "scores.jsonl"
        command("--best-of-series", "--out", out)
        before = rows(out)
        assert all(len(row["look"]) == 16 for row in before)
        monkeypatch.setattr("spp_jax.cli.gathering.look_of", None)
        assert command("--best-of-series", "--out", out) == 0
        assert rows(out) == before

    def test_without_imagehash_the_extra_is_named_and_bursts_are_found(self, command, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "imagehash", None)
        assert command("--best-of-series") == 2
        assert "pip install 'spp_jax[duplicates]'" in capsys.readouterr().err
        assert command("--best-of-series", "--no-look-alikes") == 0


class TestPlacing:
    @pytest.mark.parametrize("flag", ["--copy-best", "--link-best"])
    def test_the_best_go_into_a_folder_that_is_made_and_may_lie_among_the_photographs(
        self, command, folder, judge, capsys, flag
    ):
        before = tree(folder)
        best = folder / "best" / "of all"
        assert command("--top", 2, flag, best) == 0
        assert {path.name for path in best.iterdir()} == {"90.jpg", "71.jpg"}
        assert all(path.is_symlink() == (flag == "--link-best") for path in best.iterdir())
        assert ": 2 to " in capsys.readouterr().err
        judge.asked.clear()
        assert command("--top", 2, flag, best) == 0
        told = capsys.readouterr().err
        assert "0 to" in told
        assert "2 were there already" in told
        assert "passed over: 2 in " in told
        assert len(judge.asked) == 5
        after = tree(folder)
        assert {name: after[name] for name in before} == before

    def test_picks_are_copied_and_nothing_is_overwritten(self, command, folder, tmp_path):
        best = tmp_path / "best"
        best.mkdir()
        (best / "90.jpg").write_bytes(b"mine")
        assert command("--best-of-series", "--copy-best", best) == 0
        assert set(tree(best)) == {"40.jpg", "71.jpg", "90.jpg", "90-2.jpg"}
        assert tree(best)["90.jpg"] == b"mine"
        assert tree(best)["90-2.jpg"] == tree(folder)["90.jpg"]

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--copy-best", "x"], "--top or --best-of-series says which are the best"),
            (["--top", "0"], "--top must be at least 1, not 0"),
            (["--top", "1", "--link-best", "."], "holds the photographs themselves"),
            (["--top", "1", "--copy-best", "photos/90.jpg"], "is no folder"),
            (["--stars", ".5", ".4", ".6", ".8"], "--stars must be four rising scores"),
        ],
    )
    def test_what_does_not_go_together_is_one_line(
        self, command, tmp_path, monkeypatch, capsys, arguments, reason
    ):
        monkeypatch.chdir(tmp_path)
        assert command(*arguments) == 2
        told = capsys.readouterr().err
        assert reason in told
        assert told.count("\n") == 1

    def test_no_link_leads_to_an_address(self, command, bucket, tmp_path, capsys):
        (bucket / "90.jpg").write_bytes(jpeg(4))
        given = {"photos": ("gs://bucket",)}
        assert command("--top", 1, "--link-best", tmp_path / "best", **given) == 2
        assert "no link leads to an address" in capsys.readouterr().err


class TestStars:
    def test_each_gets_its_stars_and_photographs_stay(self, command, folder, capsys):
        before = tree(folder)
        assert command("--write-xmp") == 0
        after = tree(folder)
        assert {name: rating_in(text) for name, text in after.items() if name.endswith(".xmp")} == {
            "40.jpg.xmp": "3",
            "66.jpg.xmp": "4",
            "71.jpg.xmp": "4",
            "90.jpg.xmp": "5",
            "sub/30.jpg.xmp": "2",
        }
        assert {name: after[name] for name in before} == before
        assert "stars: 5 sidecars written\n" in capsys.readouterr().err
        assert command("--write-xmp", "--stars", ".1", ".2", ".25", ".28") == 0
        assert tree(folder) == after
        assert "5 had a rating, which stands" in capsys.readouterr().err

    def test_thresholds_names_and_overwriting_are_settable(self, command, folder):
        command("--write-xmp", "--sidecar", "stem")
        assert (folder / "90.xmp").exists()
        command("--write-xmp", "--overwrite-ratings", "--stars", ".1", ".2", ".25", ".28")
        assert {rating_in(path.read_bytes()) for path in folder.rglob("*.xmp")} == {"5"}
        assert not list(folder.rglob("*.jpg.xmp"))

    def test_those_that_are_chosen_get_them(self, command, folder):
        command("--write-xmp", "--top", 1)
        assert [path.name for path in folder.rglob("*.xmp")] == ["90.jpg.xmp"]

    def test_a_rating_in_the_photograph_stands_also_when_its_score_was_kept(self, command, folder, tmp_path):
        (folder / "95.jpg").write_bytes(jpeg(9, rating=2))
        out = tmp_path / "scores.csv"
        for _ in range(2):
            command("--write-xmp", "--out", out)
            assert not (folder / "95.jpg.xmp").exists()
        assert command("--write-xmp", "--out", out, "--overwrite-ratings") == 0
        assert (folder / "95.jpg.xmp").exists()

    def test_a_sidecar_that_cannot_be_read_is_named_and_left(self, command, folder, capsys):
        (folder / "90.jpg.xmp").write_text("my thesis")
        assert command("--write-xmp") == 3
        assert "90.jpg: gets no stars: 90.jpg.xmp is no XML" in capsys.readouterr().err
        assert (folder / "90.jpg.xmp").read_text() == "my thesis"
        assert (folder / "71.jpg.xmp").exists()

    def test_of_those_at_an_address_it_is_said(self, command, bucket, capsys):
        (bucket / "90.jpg").write_bytes(jpeg(4))
        assert command("--write-xmp", photos=("gs://bucket",)) == 3
        assert "is at an address" in capsys.readouterr().err
        assert [path.name for path in bucket.iterdir()] == ["90.jpg"]


class TestGoingOn:
    """Killed, or the folder changed: nothing is scored twice, and nothing of the rest differs."""

    ALL = ("--best-of-series", "--sort", "--write-xmp")

    @pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
    @pytest.mark.parametrize("top", [(), ("--top", "2")])
    def test_killed_in_the_middle_and_run_again(self, command, judge, folder, tmp_path, capsys, ending, top):
        judge.stops_after = 3
        out, whole = tmp_path / f"scores.{ending}", tmp_path / f"whole.{ending}"
        arguments = [*self.ALL, *top, "--copy-best", tmp_path / "best"]
        assert command(*arguments, "--out", out) == 75
        assert not (tmp_path / "best").exists()
        judge.stops_after = math.inf
        assert "interrupted; run it again; what --out holds is not lost" in capsys.readouterr().err
        assert command(*arguments, "--out", out) == 0
        after = capsys.readouterr().out
        assert sorted(judge.asked) == ["30.jpg", "40.jpg", "66.jpg", "71.jpg", "90.jpg"]
        stars, copies = tree(folder), tree(tmp_path / "best")
        assert command(*arguments, "--out", whole) == 0
        assert capsys.readouterr().out == after
        assert rows(out) == rows(whole)
        assert (tree(folder), tree(tmp_path / "best")) == (stars, copies)

    def test_of_a_folder_that_changed_only_the_new_is_scored(self, command, judge, folder, tmp_path):
        out = tmp_path / "scores.csv"
        command(*self.ALL, "--out", out)
        judge.asked.clear()
        (folder / "99.jpg").write_bytes(jpeg(7, "15:00:01"))
        (folder / "66.jpg").unlink()
        assert command(*self.ALL, "--out", out) == 0
        assert judge.asked == ["99.jpg"]
        found = {Path(row["photo"]).name: row for row in rows(out)}
        assert [found[name]["rank"] for name in ("99.jpg", "90.jpg", "66.jpg")] == ["1", "2", ""]
        assert found["99.jpg"]["why"] == "best of 2 taken within 1 s: 0.99 against 0.90"
        assert found["71.jpg"]["why"] == ""  # of a series no more
        assert found["66.jpg"]["score"]


class TestKinds:
    def test_raw_files_and_heic_go_through_all_of_it(self, command, judge, folder, tmp_path):
        pytest.importorskip("rawpy")
        pillow_heif = pytest.importorskip("pillow_heif")
        for path in folder.rglob("*.jpg"):
            path.unlink()
        (folder / "50.dng").write_bytes(dng((16, 24), 6, taken="2024:05:01 12:00:00"))
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:05:01 12:00:30"
        pillow_heif.from_pillow(picture(3)).save(folder / "80.heic", exif=exif.tobytes())
        out = tmp_path / "scores.json"
        arguments = [
            "--best-of-series",
            "--sort",
            "--copy-best",
            tmp_path / "best",
            "--write-xmp",
            "--out",
            out,
        ]
        assert command(*arguments) == 0
        found = {Path(row["photo"]).name: row for row in rows(out)}
        assert (found["50.dng"]["height"], found["50.dng"]["width"]) == (48, 32)
        assert (found["80.heic"]["height"], found["80.heic"]["width"]) == (64, 96)
        assert found["50.dng"]["taken"] == "2024-05-01T12:00:00"
        assert found["80.heic"]["taken"] == "2024-05-01T12:00:30"
        assert all(row["look"] for row in found.values())
        assert set(tree(tmp_path / "best")) == {"50.dng", "80.heic"}
        assert rating_in((folder / "50.dng.xmp").read_bytes()) == "3"

    def test_hostile_names_and_cameras_reach_neither_the_terminal_nor_a_spreadsheet(
        self, command, folder, tmp_path, capsys
    ):
        name = "88\x1b[31m\n=1.jpg"
        exif = Image.Exif()
        exif[ExifTags.Base.Make] = "=cmd|' /C calc'!A0"
        picture(5).save(folder / name, "JPEG", exif=exif)
        out = tmp_path / "scores.csv"
        assert (
            command("--sort", "--out", out, "--write-xmp", "--top", 9, "--copy-best", tmp_path / "best") == 0
        )
        told = capsys.readouterr()
        assert "\x1b" not in told.out + told.err
        assert "88\\x1b[31m\\x0a=1.jpg" in told.out
        with out.open(newline="") as file:
            found = {Path(row["photo"]).name: row for row in csv.DictReader(file)}
        assert found[name]["camera"][:2] == "'="
        assert (folder / f"{name}.xmp").exists()
        assert (tmp_path / "best" / name).exists()


def test_every_option_has_a_line_of_help(capsys):
    with pytest.raises(SystemExit):
        score.main(["--help"])
    told = capsys.readouterr().out
    flags = set(flags_of(score.Options).values()) - {"--photos"}
    assert {"--write-xmp", "--copy-best", "--out"} <= flags
    assert not [flag for flag in flags if f" {flag}" not in told]


def test_json_says_all_that_is_known(command, tmp_path):
    command("--best-of-series", "--out", tmp_path / "scores.json")
    found = json.loads((tmp_path / "scores.json").read_text())
    columns = "photo score rank percentile width height taken series pick why reason camera rating look bytes"
    assert list(found[0]) == [*columns.split(), "changed", "checkpoint"]
