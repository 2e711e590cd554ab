import base64
import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from conftest import noise_records
from flax import nnx
from PIL import Image

from spp_jax import Scorer, create_model
from spp_jax.addresses import path_at
from spp_jax.cli import score as score_command
from spp_jax.data.decoding import decode
from spp_jax.errors import UsageError
from spp_jax.scoring import Entry, in_series, ranked
from spp_jax.scoring.drawing import heat_map, strongest
from spp_jax.scoring.gallery import Gallery

HOSTILE = (
    '"><b onclick=alert(1)>.png',
    "</script><img src=x onerror=alert(1)>.png",
    "<!--<script>.png",
    "a#b?c%20d&e'f.png",
    "two\nlines\u202egnp.png",
    "back\\slash:colon.png",
    os.fsdecode(b"caf\xe9.png"),
)
"""Names below a folder: what a slash parts lies in a folder of its own."""

KILLED = """
import os, signal, sys, time
from pathlib import Path
from spp_jax import Scorer
from spp_jax.cli import score
stream = Scorer.stream
def killed(self, photos, **options):
    for number, result in enumerate(stream(self, photos, **options)):
        if number == 2:  # and both are kept, which a thread does
            ends = time.monotonic() + 60
            while sum(f.read_bytes().count(b'"photo"') for f in Path(sys.argv[-1]).glob("*scores*")) < 2:
                assert time.monotonic() < ends
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        yield result
Scorer.stream = killed
score.main(sys.argv[1:])
"""
"""`spp-jax score`, killed when two scores were said and kept."""


def ramp(height, width, seed=0):
    """A picture whose thumbnail tells which way up it lies: red grows to the right, green downwards."""
    rows, columns = np.meshgrid(np.linspace(0, 250, height), np.linspace(0, 250, width), indexing="ij")
    return np.stack([columns, rows, np.full_like(rows, seed)], axis=2).astype(np.uint8)


@pytest.fixture(scope="module")
def scorer():
    model = create_model("compact", widths=(4, 8), hidden=8, rngs=nnx.Rngs(0))
    model.head.logits.kernel[...] = np.random.default_rng(0).normal(size=(8, 1)).astype(np.float32)
    return Scorer(model)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = [folder / f"{name}.png" for name in "abcd"]
    for path, size in zip(paths, [(48, 64), (64, 48), (50, 50), (40, 64)], strict=True):
        Image.fromarray(ramp(*size)).save(path)
    return paths


def entries_of(paths, scores=None, reasons=None):
    scores = np.linspace(0.9, 0.1, len(paths)) if scores is None else scores
    found = []
    for place, (path, score) in enumerate(zip(paths, scores, strict=True)):
        name = str(path).split("/photos/")[1]
        known = {"reason": (reasons or {}).get(place, ""), "height": 48, "width": 64}
        found.append(Entry(place, path, name, np.atleast_1d(np.float32(score)), **known))
    return ranked(found)


def made(scorer, paths, folder, best=0, **options):
    """A gallery of these, as the command makes it."""
    gallery = Gallery(folder)
    entries = entries_of(paths)
    gallery.complete(scorer, entries, int)
    gallery.explain(scorer, entries, best)
    return gallery.write(entries, scorer.attributes, digest=scorer.digest, best=best, **options)


def opened(path):
    with Image.open(path) as picture:
        picture.load()
        return picture


def told(page):
    """What the page's script reads."""
    block = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL
    )
    assert block
    return json.loads(block[1])


def scored_from_here(monkeypatch):
    """The photographs that a Scorer is asked for from now on."""
    asked, stream = [], Scorer.stream
    monkeypatch.setattr(
        Scorer, "stream", lambda self, photos, **k: asked.extend(photos) or stream(self, photos, **k)
    )
    return asked


class TestWatching:
    def test_every_photograph_that_was_decoded_is_shown_once_with_its_place(self, scorer, photos, tmp_path):
        (tmp_path / "bad.png").write_bytes(b"no picture")
        given, seen = [photos[0], tmp_path / "bad.png", *photos[1:]], {}
        results = list(
            scorer.stream(given, watch=lambda place, pixels, turned: seen.update({place: (pixels, turned)}))
        )
        assert sorted(result.place for result in results) == [0, 1, 2, 3, 4]
        assert sorted(seen) == [0, 2, 3, 4]
        for place, (pixels, turned) in seen.items():
            upright = pixels.swapaxes(0, 1) if turned else pixels
            np.testing.assert_array_equal(upright, decode(given[place]))
        alone = {}
        next(iter(scorer.stream([photos[1]], watch=lambda place, *_: alone.update({place: True}))))
        assert alone == {0: True}

    def test_what_the_watcher_raises_ends_the_stream(self, scorer, photos):
        def full(*_):
            raise OSError("no space left")

        with pytest.raises(OSError, match="no space left"):
            list(scorer.stream(photos, watch=full))

    def test_thumbnails_made_on_the_way_are_upright_and_those_of_decoding_alone(
        self, scorer, photos, tmp_path
    ):
        gallery = Gallery(tmp_path / "one")
        list(scorer.stream(photos, watch=gallery.watch(scorer, photos)))
        gallery.write(entries_of(photos))
        page = made(scorer, photos, tmp_path / "other")
        for path, entry in zip(photos, told(page)["photos"], strict=True):
            first, second = (
                np.asarray(opened(tmp_path / name / entry["thumb"]), np.int64) for name in ("one", "other")
            )
            np.testing.assert_array_equal(first, second)
            assert np.abs(first - decode(path)).max() < 40  # JPEG


class TestFolder:
    def test_a_gallery_that_was_broken_off_has_no_page_and_goes_on(self, scorer, photos, tmp_path):
        folder = tmp_path / "gallery"
        gallery = Gallery(folder)
        stream = scorer.stream(iter(photos[:2]), watch=gallery.watch(scorer, photos))
        list(stream)
        assert not (folder / "index.html").exists()
        kept = {file.name: file.stat().st_mtime_ns for file in (folder / "thumbs").iterdir()}
        assert len(kept) == 2
        page = made(scorer, photos, folder)
        assert len(told(page)["photos"]) == 4
        after = {file.name: file.stat().st_mtime_ns for file in (folder / "thumbs").iterdir()}
        assert len(after) == 4
        assert kept.items() <= after.items()

    def test_what_a_kill_and_a_system_leave_in_it_is_no_obstacle(self, scorer, photos, tmp_path):
        page = made(scorer, photos, tmp_path / "gallery")
        thumb = Path(told(page)["photos"][0]["thumb"]).stem
        for name in (".index.html.1.2.part", ".scores.jsonl.77", "scores.jsonl", ".DS_Store", "Thumbs.db"):
            (page.parent / name).write_text("half")
        (page.parent / "thumbs" / f".{thumb}.jpg.1.2.part").write_text("half")
        made(scorer, photos, page.parent)
        assert len(os.listdir(page.parent / "thumbs")) == len(photos)

    def test_a_page_is_replaced_whole_or_not_at_all(self, scorer, photos, tmp_path, monkeypatch):
        page = made(scorer, photos, tmp_path / "gallery")
        before = page.read_bytes()
        replace = os.replace

        def breaks(source, target):
            if Path(target).name == "index.html":
                raise OSError("no space left")
            replace(source, target)

        monkeypatch.setattr(os, "replace", breaks)
        with pytest.raises(OSError, match="no space left"):
            made(scorer, photos[:1], tmp_path / "gallery")
        assert page.read_bytes() == before
        assert all((page.parent / photo["thumb"]).exists() for photo in told(page)["photos"])
        assert sorted(os.listdir(page.parent)) == ["index.html", "thumbs", "views"]

    def test_a_changed_photograph_gets_another_thumbnail_and_what_is_shown_no_more_goes(
        self, scorer, photos, tmp_path
    ):
        page = made(scorer, photos, tmp_path / "gallery", best=1)
        first = {photo["name"]: photo["thumb"] for photo in told(page)["photos"]}
        (page.parent / "thumbs" / "mine.jpg").write_bytes(b"mine")
        Image.fromarray(ramp(30, 30, 200)).save(photos[1])
        page = made(scorer, photos[:3], tmp_path / "gallery")
        second = {photo["name"]: photo["thumb"] for photo in told(page)["photos"]}
        assert {name for name in second if second[name] != first[name]} == {"b.png"}
        names = {Path(name).name for name in second.values()} | {"mine.jpg"}
        assert set(os.listdir(page.parent / "thumbs")) == names
        assert os.listdir(page.parent / "views") == []
        assert all(photo.exists() for photo in photos)

    def test_what_is_no_gallery_is_refused_and_left_as_it_is(self, tmp_path, bucket):
        (tmp_path / "file").write_text("mine")
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter.txt").write_text("mine")
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "index.html").write_text("<h1>mine</h1>")
        for name, said in (
            ("file", "is a file"),
            ("thesis", "such as chapter.txt"),
            ("site", "such as index.html"),
        ):
            with pytest.raises(UsageError, match=said):
                Gallery(tmp_path / name)
        with pytest.raises(UsageError, match="on a disk"):
            Gallery(path_at("gs://bucket/gallery"))
        assert (tmp_path / "site" / "index.html").read_text() == "<h1>mine</h1>"
        assert not (tmp_path / "site" / "thumbs").exists()
        (tmp_path / "empty").mkdir()
        assert Gallery(tmp_path / "empty").holds(tmp_path / "empty" / "thumbs" / "x.jpg")
        assert not Gallery(tmp_path / "empty").holds(tmp_path / "emptyish.jpg")


class TestPage:
    @pytest.mark.skipif(os.name == "nt", reason="such names are not to be had")
    def test_hostile_names_are_text_and_their_links_lead_to_the_files(self, scorer, tmp_path):
        folder = tmp_path / "photos"
        folder.mkdir()
        paths = [folder / name for name in HOSTILE]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(ramp(20, 20)).save(path, "PNG")
        page = made(scorer, paths, tmp_path / "gallery", title="<b>&amp;\u202e")
        text = page.read_text()
        assert text.count("</script>") == text.count("<script") == 2
        assert "onerror" not in re.sub(r'<script type="application/json".*?</script>', "", text)
        assert "<h1>&lt;b&gt;&amp;amp;\\u202e</h1>" in text
        assert "\u202e" not in text
        listed = told(page)["photos"]
        assert listed[1]["name"] == HOSTILE[1]
        for path, photo in zip(paths, listed, strict=True):
            assert not re.search(r"[\x00-\x1f\u202e\ud800-\udfff]", photo["name"])
            assert re.fullmatch(r"[A-Za-z0-9_.~/%-]+", photo["url"])
            found = page.parent / os.fsdecode(urllib.parse.unquote_to_bytes(photo["url"]))
            assert found.samefile(path)

    def test_the_policy_names_the_very_style_and_script_of_the_page(self, scorer, photos, tmp_path):
        text = made(scorer, photos, tmp_path / "gallery").read_text()
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
        style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
        script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
        assert policy
        assert style
        assert script
        rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
        for name, content in (("style-src", style[1]), ("script-src", script[1])):
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert rules[name] == f"'sha256-{digest}'"
        assert rules["default-src"] == "'none'"
        assert rules["img-src"] == "'self' data:"
        assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(|@import|\son[a-z]+=""", text)

    def test_those_without_a_score_are_listed_with_the_reason(self, photos, tmp_path):
        entries = entries_of(photos, [0.5, np.nan, 0.7, 0.6], {1: "is <b>no</b> picture"})
        gallery = Gallery(tmp_path / "gallery")
        gallery.begin()
        page = gallery.write(entries)
        assert [photo["name"] for photo in told(page)["photos"]] == ["c.png", "d.png", "a.png"]
        assert "1 photograph has no score" in page.read_text()
        assert "<td>is &lt;b&gt;no&lt;/b&gt; picture</td>" in page.read_text()

    def test_a_series_has_its_pick_and_why(self, photos, tmp_path):
        times = [f"2024-05-01T12:00:0{second}" for second in (0, 1, 2)] + ["2024-05-02T12:00:00"]
        entries = [
            dataclasses.replace(entry, taken=time)
            for entry, time in zip(entries_of(photos, [0.3, 0.8, 0.5, 0.6]), times, strict=True)
        ]
        gallery = Gallery(tmp_path / "gallery")
        gallery.begin()
        by_name = {photo["name"]: photo for photo in told(gallery.write(in_series(entries)))["photos"]}
        assert [by_name[f"{name}.png"].get("series") for name in "abcd"] == [1, 1, 1, None]
        assert [by_name[f"{name}.png"]["pick"] for name in "abcd"] == [False, True, False, True]
        assert "best of 3" in by_name["b.png"]["why"]

    def test_the_same_input_gives_the_same_bytes(self, scorer, photos, tmp_path):
        page = made(scorer, photos, tmp_path / "gallery", best=1)
        before = page.read_bytes()
        assert made(scorer, photos, tmp_path / "gallery", best=1).read_bytes() == before


class TestExplanations:
    def test_the_best_are_explained_by_the_very_numbers_and_no_others(self, scorer, photos, tmp_path):
        page = made(scorer, photos, tmp_path / "gallery", best=2)
        listed = told(page)["photos"]
        assert ["why_shown" in photo for photo in listed] == [True, True, False, False]
        assert "made for the 2 best alone" in page.read_text()
        said, why = listed[0]["why_shown"], scorer.explain(photos[0])
        assert said["logit"] == pytest.approx(why.logit, abs=1e-4)
        assert [name for name, _ in said["parts"]] == list(why.parts)
        assert sum(amount for _, amount in said["parts"]) == pytest.approx(why.logit, abs=1e-2)
        assert (said["low"], said["high"]) == pytest.approx((why.map.min(), why.map.max()), abs=1e-4)
        crops = scorer.crops(photos[0], count=5)
        assert [crop["score"] for crop in said["crops"]] == pytest.approx([c.score for c in crops], abs=1e-4)
        assert said["crops"][0]["box"] == pytest.approx(np.array(crops[0].box) / (64, 48, 64, 48), abs=1e-4)
        for x, y, effect in said["winners"]:
            assert 0 <= x <= 1
            assert 0 <= y <= 1
            assert effect
        assert opened(page.parent / said["view"]).size == (64, 48)
        assert opened(page.parent / said["map"]).size == (64, 48)

    def test_an_explanation_is_kept_for_its_photograph_and_its_judge(
        self, scorer, photos, tmp_path, monkeypatch
    ):
        page = made(scorer, photos, tmp_path / "gallery", best=2)
        asked = []
        explain = scorer.explain
        monkeypatch.setattr(scorer, "explain", lambda photo, **k: asked.append(photo) or explain(photo, **k))
        made(scorer, photos, page.parent, best=2)
        assert asked == []
        made(scorer, photos, page.parent, best=3)
        assert asked == [photos[2]]
        monkeypatch.setitem(vars(scorer), "digest", "another judge")
        made(scorer, photos[:1], page.parent, best=1)
        assert asked == [photos[2], photos[0]]

    def test_one_that_is_gone_by_then_is_named_and_the_others_go_on(self, scorer, photos, tmp_path, caplog):
        gallery, entries = Gallery(tmp_path / "gallery"), entries_of(photos)
        gallery.complete(scorer, entries, int)
        photos[0].unlink()
        gallery.explain(scorer, entries, 2)
        assert f"{photos[0]} is not explained: there is no such file" in caplog.text
        page = gallery.write(entries, digest=scorer.digest, best=2)
        assert ["why_shown" in photo for photo in told(page)["photos"]] == [False, True, False, False]


def test_the_heat_map_goes_from_violet_to_yellow_and_is_no_larger_than_asked_for():
    picture = heat_map(np.array([[0, 1, 0.5]], np.float32), 256).convert("RGB")
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(0x44, 0x01, 0x54), (0xFD, 0xE7, 0x25)]
    assert heat_map(np.zeros((300, 700), np.float32), 70).size == (70, 30)


def test_without_winners_there_is_no_strongest():
    places, effects = strongest(())
    assert places.shape == (0, 2)
    assert effects.shape == (0,)


class TestCommand:
    RECORDS = noise_records(5)

    def album(self, tmp_path, count):
        """A folder of so many photographs: 0.png, 1.png, ..."""
        folder = tmp_path / "album"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.png").write_bytes(self.RECORDS.photo(number))
        return folder

    def test_makes_a_gallery_and_goes_on_without_scoring_again(self, tmp_path, capsys, monkeypatch):
        folder = self.album(tmp_path, 4)
        gallery = folder / "gallery"  # among the photographs
        arguments = [str(folder), "--judge", "compact", "--cache-dir", str(tmp_path / "cache")]
        arguments += ["--gallery", str(gallery), "--explain-best", "0"]
        assert score_command.main(arguments) == 0
        said = capsys.readouterr()
        assert f"gallery: {gallery / 'index.html'}" in said.err
        listed = told(gallery / "index.html")["photos"]
        assert sorted(photo["name"] for photo in listed) == [f"{number}.png" for number in range(4)]
        assert sorted(os.listdir(gallery)) == ["index.html", "scores.jsonl", "thumbs", "views"]
        (folder / "4.png").write_bytes(self.RECORDS.photo(4))
        asked = scored_from_here(monkeypatch)
        assert score_command.main(arguments) == 0
        assert asked == [folder / "4.png"]
        assert "passed over: 4 of the gallery" in capsys.readouterr().err
        assert len(told(gallery / "index.html")["photos"]) == 5

    def test_killed_in_the_middle_and_run_again_goes_on_and_ends_as_one_run_does(
        self, tmp_path, capsys, monkeypatch
    ):
        folder = self.album(tmp_path, 5)

        def arguments(gallery):
            options = ["--cache-dir", str(tmp_path / "cache"), "--gallery", str(tmp_path / gallery)]
            return [str(folder), "--judge", "compact", "--explain-best", "1", *options]

        assert score_command.main(arguments("whole")) == 0
        done = subprocess.run([sys.executable, "-c", KILLED, *arguments("killed")], check=False)
        assert done.returncode == -signal.SIGKILL
        killed = tmp_path / "killed"
        assert not (killed / "index.html").exists()
        kept = {file.name: file.stat().st_mtime_ns for file in (killed / "thumbs").glob("[0-9a-f]*.jpg")}
        assert len(kept) >= 2
        asked = scored_from_here(monkeypatch)
        assert score_command.main(arguments("killed")) == 0
        assert len(asked) == 3
        assert told(killed / "index.html") == told(tmp_path / "whole" / "index.html")
        after = {file.name: file.stat().st_mtime_ns for file in (killed / "thumbs").iterdir()}
        assert kept.items() <= after.items()
        assert len(after) == 5

    def test_of_a_folder_that_changed_only_the_new_is_scored_and_what_is_gone_is_shown_no_more(
        self, tmp_path, capsys, monkeypatch
    ):
        folder = self.album(tmp_path, 4)
        gallery = tmp_path / "gallery"
        arguments = [str(folder), "--judge", "compact", "--cache-dir", str(tmp_path / "cache")]
        arguments += ["--gallery", str(gallery), "--explain-best", "0"]
        assert score_command.main(arguments) == 0
        before = {photo["name"]: photo for photo in told(gallery / "index.html")["photos"]}
        (folder / "0.png").unlink()
        (folder / "1.png").write_bytes(self.RECORDS.photo(4))
        os.utime(folder / "1.png", ns=(1, 1))
        (folder / "5.png").write_bytes(self.RECORDS.photo(0))
        asked = scored_from_here(monkeypatch)
        assert score_command.main(arguments) == 0
        assert [path.name for path in asked] == ["1.png", "5.png"]
        after = {photo["name"]: photo for photo in told(gallery / "index.html")["photos"]}
        assert sorted(after) == ["1.png", "2.png", "3.png", "5.png"]
        assert [after[name]["scores"] for name in ("2.png", "3.png")] == [
            before[name]["scores"] for name in ("2.png", "3.png")
        ]
        assert after["5.png"]["scores"] == before["0.png"]["scores"]
        assert after["1.png"]["thumb"] != before["1.png"]["thumb"]
        assert len(os.listdir(gallery / "thumbs")) == 4

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--gallery", "."], "--gallery {tmp} holds what is not of a gallery, such as a.png"),
            (["--explain-best", "-1"], "--explain-best must be at least 0, not -1"),
        ],
    )
    def test_wrong_use_is_one_line_before_anything_is_scored(self, tmp_path, capsys, options, said):
        (tmp_path / "a.png").write_bytes(self.RECORDS.photo(0))
        options = [str(tmp_path) if option == "." else option for option in options]
        assert (
            score_command.main([str(tmp_path / "a.png"), "--cache-dir", str(tmp_path / "c"), *options]) == 2
        )
        told_ = capsys.readouterr().err
        assert said.format(tmp=tmp_path) in told_
        assert told_.count("\n") == 1
