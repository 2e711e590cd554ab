import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from flax import nnx
from PIL import Image, ImageCms

from spp_jax import Scorer, create_model
from spp_jax.cli import crop as crop_command
from spp_jax.cli import explain as explain_command
from spp_jax.cli import judging
from spp_jax.data.cutting import cut
from spp_jax.data.unreadable import UnreadableError
from spp_jax.errors import UsageError
from spp_jax.scoring import drawing
from spp_jax.scoring.crops import aspect_of, best_crops, candidates, suppressed, wanted


def noise(size, seed=0):
    return np.random.default_rng((seed, *size)).integers(0, 256, (*size, 3), np.uint8)


@pytest.fixture(scope="module")
def scorer():
    model = create_model("compact", widths=(4, 8), hidden=8, rngs=nnx.Rngs(0))
    model.head.logits.kernel[...] = np.random.default_rng(0).normal(size=(8, 1)).astype(np.float32)
    return Scorer(model)


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (301, 77)])
@pytest.mark.parametrize("aspect", [None, "1:1", "4:5", "16:9"])
def test_candidates_lie_inside_have_the_shape_and_half_the_sides_of_the_largest_at_least(size, aspect):
    boxes = candidates(size, aspect, (8, 8))
    assert len(np.unique(boxes, axis=0)) == len(boxes) > 20
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= size[::-1]).all()
    wide, high = (boxes[:, 2:] - boxes[:, :2]).T
    ratio = size[1] / size[0] if aspect is None else aspect_of(aspect)
    assert (np.abs(wide - high * ratio) <= 0.5 + 0.5 * ratio).all()
    assert wide.min() >= wide.max() // 2
    assert not ((wide == size[1]) & (high == size[0])).any()


def test_no_candidate_is_smaller_than_the_judge_takes():
    boxes = candidates((40, 60), None, (30, 10))
    assert (boxes[:, 3] - boxes[:, 1]).min() >= 30
    assert candidates((8, 8), None, (8, 8)).shape == (0, 4)


def test_of_boxes_that_overlap_the_better_is_kept():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [5, 0, 15, 10]])
    assert suppressed(boxes, np.array([0.5, 0.9, 0.1, 0.4]), 0.6, 9) == [1, 3, 2]
    assert suppressed(boxes, np.array([0.5, 0.9, 0.1, 0.4]), 0.6, 2) == [1, 3]


def test_each_shape_has_its_best_crop_before_any_has_a_second():
    boxes = {"1:1": np.array([[0, 0, 10, 10], [20, 0, 30, 10]]), None: np.array([[0, 0, 20, 10]])}
    scores = {"1:1": np.array([0.9, 0.8]), None: np.array([0.1])}
    assert [c.score for c in best_crops(boxes, scores, 0.5, 2)] == [0.9, 0.1]
    assert [c.score for c in best_crops(boxes, scores, 0.5, 3)] == [0.9, 0.8, 0.1]


def test_photographs_that_fit_into_a_rung_there_is_share_its_programs_and_have_their_own_scores(monkeypatch):
    scorer = Scorer(create_model("compact", rngs=nnx.Rngs(0)))
    photos = [noise(size, seed) for seed, size in enumerate([(128, 96), (90, 110), (61, 127), (64, 64)])]
    expected = scorer.score(photos)
    found = []
    for photo in photos:
        found += scorer.score_boxes(photo, [[0, 0, photo.shape[1], photo.shape[0]]]).tolist()
        monkeypatch.setattr(scorer, "_home", None)  # which would give each the rung that holds it closest
    assert len(scorer._regions._windows) == len(scorer._regions._see) == 1
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_photograph_goes_to_no_rung_that_it_would_leave_mostly_empty_or_that_does_not_hold_it():
    scorer = Scorer(create_model("compact", rngs=nnx.Rngs(0)))
    scorer.score_boxes(noise((128, 96)), [[0, 0, 96, 128]])
    (bucket,) = scorer._regions._windows.had()
    high, wide = bucket.shape
    home = scorer._regions.home
    assert home((high, wide)) == (bucket.shape, False)
    assert home((wide, high)) == (bucket.shape, high != wide)
    assert home((high // 2, wide // 2 - 1)) is None
    assert home((high + wide, 4)) is None


def test_a_second_start_finds_the_programs_of_crops_and_explanations_and_compiles_none(tmp_path):
    code = """
import sys, numpy as np
from spp_jax import Scorer
from spp_jax.compilation import use_compilation_cache
from spp_jax.testing import count_compilations
use_compilation_cache(sys.argv[1])
photo = np.random.default_rng(0).integers(0, 256, (70, 60, 3), np.uint8)
scorer = Scorer.from_pretrained("compact")
with count_compilations() as count:
    score, explained = scorer.crops(photo)[0].score, scorer.explain(photo).map.mean()
made = [name for name in count.compiled + count.cached if name.startswith(("see", "judge_windows"))]
print(score, explained, len(made))
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / "cache"], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert [int(made) for *_, made in runs] == [2, 0]
    assert runs[0][:2] == runs[1][:2]


def test_crops_are_the_best_candidates_with_the_scores_of_their_boxes(scorer):
    photo = noise((70, 100))
    crops = scorer.crops(photo, ("1:1",), count=3)
    assert [c.score for c in crops] == sorted((c.score for c in crops), reverse=True)
    np.testing.assert_allclose(scorer.score_boxes(photo, [c.box for c in crops]), [c.score for c in crops])
    assert crops[0].original == pytest.approx(scorer.score([photo])[0], abs=1e-5)
    boxes = candidates((70, 100), "1:1", scorer.min_size)
    assert crops[0].score == pytest.approx(scorer.score_boxes(photo, boxes).max(), abs=1e-6)
    assert len(scorer.crops(photo)) == 5


@pytest.mark.parametrize("aspect", ["4/5", "0:1", "1:0", "a:b", "-1:2", "1000:1", "", "1:2:3"])
def test_a_malformed_aspect_is_named(scorer, aspect):
    with pytest.raises(UsageError, match="aspect"):
        scorer.crops(noise((70, 100)), (aspect,))


def test_wrong_arguments_are_named():
    with pytest.raises(UsageError, match="not one text"):
        wanted("4:5", 1)
    with pytest.raises(UsageError, match="count must be at least 1"):
        wanted((None,), 0)


def photograph(path, orientation=6, **options):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "a maker"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:02 03:04:05"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    smooth = Image.fromarray(noise((6, 9))).resize((90, 60), Image.Resampling.BICUBIC)
    smooth.save(path, exif=exif, icc_profile=profile, **options)
    return profile


def test_a_cut_jpeg_keeps_quality_profile_and_exif(tmp_path):
    profile = photograph(tmp_path / "a.jpg", quality=83, subsampling=1)
    before = (tmp_path / "a.jpg").read_bytes()
    cut(tmp_path / "a.jpg", (5, 10, 45, 60), tmp_path / "b.jpg")
    assert (tmp_path / "a.jpg").read_bytes() == before
    with Image.open(tmp_path / "a.jpg") as opened, Image.open(tmp_path / "b.jpg") as written:
        old: Any = opened
        new: Any = written
        assert new.size == (40, 50)
        assert new.quantization == old.quantization
        assert new.layer == [(n, h, v, t) for n, h, v, t in old.layer]
        assert new.info["icc_profile"] == profile
        exif = new.getexif()
        assert exif.get(0x0112, 1) == 1
        assert exif[0x010F] == "a maker"
        assert exif.get_ifd(0x8769)[0x9003] == "2020:01:02 03:04:05"
        assert (exif.get_ifd(0x8769)[0xA002], exif.get_ifd(0x8769)[0xA003]) == (40, 50)
        upright = np.rot90(np.asarray(old.convert("RGB")), -1)[10:60, 5:45]
        assert np.abs(np.asarray(new).astype(int) - upright).mean() < 6
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.jpg", "b.jpg"]


def test_a_cut_png_has_the_very_pixels(tmp_path):
    Image.fromarray(noise((30, 40))).save(tmp_path / "a.png")
    cut(tmp_path / "a.png", (3, 4, 20, 30), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as part:
        np.testing.assert_array_equal(np.asarray(part), noise((30, 40))[4:30, 3:20])


def test_what_is_transparent_lies_on_white_in_a_jpeg(tmp_path):
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(tmp_path / "a.png")
    cut(tmp_path / "a.png", (0, 0, 20, 20), tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as part:
        assert np.asarray(part).min() > 250


def test_what_cannot_be_cut_says_so_and_leaves_nothing(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"text")
    with pytest.raises(UnreadableError, match="cannot be cut"):
        cut(tmp_path / "a.jpg", (0, 0, 2, 2), tmp_path / "b.jpg")
    file = io.BytesIO()
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(file, "PNG")
    (tmp_path / "c.png").write_bytes(file.getvalue())
    with pytest.raises(UnreadableError, match="more than 8 bits"):
        cut(tmp_path / "c.png", (0, 0, 9, 9), tmp_path / "b.jpg")
    assert not (tmp_path / "b.jpg").exists()


class TestCommands:
    @pytest.fixture(autouse=True)
    def judge(self, scorer, monkeypatch, tmp_path):
        monkeypatch.setattr(judging, "judge_of", lambda judge, checkpoint: scorer)
        monkeypatch.setattr(judging, "use_compilation_cache", lambda folder: None)
        photograph(tmp_path / "a.jpg")

    def test_crop_writes_the_best_of_the_shape(self, tmp_path, capsys):
        out = tmp_path / "b.jpg"
        assert crop_command.main([str(tmp_path / "a.jpg"), "--aspect", "4:5", "--out", str(out)]) == 0
        with Image.open(out) as picture:
            width, height = picture.size
        assert abs(width - height * 0.8) <= 1
        said = capsys.readouterr().out
        assert f"{width} x {height} from" in said
        assert crop_command.main([str(tmp_path / "a.jpg"), "--out", str(out)]) == 2
        assert "add --overwrite" in capsys.readouterr().err
        assert crop_command.main([str(tmp_path / "a.jpg"), "--out", str(out), "--overwrite"]) == 0

    @pytest.mark.parametrize("command", [crop_command, explain_command])
    def test_the_photograph_itself_is_never_written_over(self, tmp_path, capsys, command):
        photo = tmp_path / ("a.jpg" if command is crop_command else "a.png")
        photo.write_bytes((tmp_path / "a.jpg").read_bytes())
        before = photo.read_bytes()
        assert command.main([str(photo), "--out", str(photo), "--overwrite"]) == 2
        assert "the photograph itself" in capsys.readouterr().err
        assert photo.read_bytes() == before

    @pytest.mark.parametrize("command", [crop_command, explain_command])
    def test_wrong_use_is_said_in_one_line(self, tmp_path, capsys, command):
        photo = str(tmp_path / "a.jpg")
        assert command.main([photo, "--out", str(tmp_path / "b.txt")]) == 2
        assert "--out" in capsys.readouterr().err
        assert command.main([photo, "--out", str(tmp_path / "no" / "b.png")]) == 2
        assert "no folder" in capsys.readouterr().err
        assert command.main([str(tmp_path / "gone.jpg")]) == 1
        err = capsys.readouterr().err
        assert "gone.jpg" in err
        assert err.count("\n") == 1

    def test_explain_says_parts_and_draws_them(self, scorer, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        out = tmp_path / "why.png"
        assert explain_command.main([str(tmp_path / "a.jpg"), "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"{scorer.score([tmp_path / 'a.jpg'])[0]:.4f}")
        assert "map 1, 4x4" in said
        with Image.open(out) as picture:
            assert picture.width > 800
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50

    def test_a_winner_at_the_edge_does_not_shrink_the_photograph_that_is_drawn(self, scorer):
        pytest.importorskip("matplotlib")
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (90, 60, 3), np.uint8)
        photo, local, won, _ = drawing.explanation_figure(pixels, scorer.explain(pixels)).axes[:4]
        assert won.get_xlim() == local.get_xlim() == photo.get_xlim() == (-0.5, 59.5)
        assert won.get_ylim() == local.get_ylim() == photo.get_ylim() == (89.5, -0.5)
        assert len(won.patches) == 16  # the fields of the finest level

    def test_one_field_has_no_frame(self):
        pytest.importorskip("matplotlib")
        pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), np.uint8)
        judge = Scorer(create_model("compact", levels=(1,), widths=(4, 8), hidden=8, rngs=nnx.Rngs(0)))
        won = drawing.explanation_figure(pixels, judge.explain(pixels)).axes[2]
        assert won.get_title() == "winners"
        assert not won.patches

    def test_explain_gives_arrays(self, scorer, tmp_path):
        out = tmp_path / "why.npz"
        assert explain_command.main([str(tmp_path / "a.jpg"), "--out", str(out)]) == 0
        with np.load(out) as found:
            np.testing.assert_allclose(found["map"], scorer.explain(tmp_path / "a.jpg").map)
            assert len(found["parts"]) == len(found["parts_names"]) == 7
