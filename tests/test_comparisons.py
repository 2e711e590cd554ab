"""What people preferred of two pictures: tables of it, crops as pictures, and the Flickr Cropping Dataset."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spp_jax.config import Decoding
from spp_jax.data import load_dataset
from spp_jax.data.decoding import decode
from spp_jax.data.fcdb.fcdb_dataset_builder import best_crops
from spp_jax.data.records import Records, split_records
from spp_jax.errors import UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), np.uint8)


def save(path: Path, number: int, size: tuple[int, int] = (12, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS[number, : size[0], : size[1]]).save(path)


def load(name: str, data_dir: Path, decoding: Decoding = Decoding()) -> tuple[Records, dict[str, str]]:  # noqa: B008
    return load_dataset(name, data_dir, decoding)


class TestFcdb:
    """The Flickr Cropping Dataset, in its very format."""

    IDS = (
        "11_9bdc_c.jpg@0,0,10,6",
        "11_9bdc_c.jpg@0,0,20,12",
        "11_9bdc_c.jpg@5,3,15,9",
        "22_9bdc_c.jpg@1,1,8,4",
        "22_9bdc_c.jpg@9,6,11,6",
    )

    @pytest.fixture
    def folder(self, tmp_path):
        """Three of four photographs are still there; a crop reaches beyond its edge."""

        def url(number: int) -> str:
            return f"https://farm3.staticflickr.com/2946/{number}_9bdc_c.jpg"

        def pair(votes: tuple[int, int], *crops: list[int]) -> dict:
            return {"vote_for_1": votes[1], "vote_for_0": votes[0], "crop_1": crops[1], "crop_0": crops[0]}

        folder = tmp_path / "manual" / "fcdb"
        for number, n in enumerate((11, 22, 33)):
            save(folder / "data" / f"{n}_9bdc_c.jpg", number)
        first = [
            pair((4, 1), [0, 0, 10, 6], [5, 3, 15, 9]),
            pair((0, 5), [0, 0, 20, 12], [0, 0, 10, 6]),
        ]
        ranked = [
            {"url": url(11), "crops": first, "flickr_photo_id": 11},
            {"url": url(22), "crops": [pair((2, 3), [1, 1, 8, 4], [9, 6, 12, 6])], "flickr_photo_id": 22},
            *({"url": url(n), "crops": [], "flickr_photo_id": n} for n in (33, 44)),
        ]
        (folder / "ranking_annotation.json").write_text(json.dumps(ranked, indent=4))
        best = [{"url": url(n), "flickr_photo_id": n, "crop": [2, 1, 10, 7]} for n in (11, 22)]
        (folder / "cropping_training_set.json").write_text(json.dumps(best[:1]))
        (folder / "cropping_testing_set.json").write_text(json.dumps(best[1:]))
        return folder

    def test_crops_are_pictures_and_votes_are_pairs(self, folder, tmp_path):
        for _ in ("preparing", "prepared"):
            records, skipped = load("fcdb", tmp_path)
            assert not skipped
            assert records.ids == self.IDS
            assert records.sizes.tolist() == [[6, 10], [12, 20], [9, 15], [4, 8], [6, 11]]
            assert np.isnan(records.scores).all()
            assert records.pairs is not None
            assert records.pairs.rows.tolist() == [[0, 2], [1, 0], [3, 4]]
            np.testing.assert_allclose(records.pairs.shares, [0.8, 0, 0.4])
        whole = decode(folder / "data" / "11_9bdc_c.jpg")
        np.testing.assert_array_equal(decode(records.photo(2)), whole[3:12, 5:20])
        assert set(records.groups) == {"11_9bdc_c.jpg", "22_9bdc_c.jpg"}  # crops of one go together

    def test_crops_are_scaled_down_as_pictures_are(self, folder, tmp_path):
        records, _ = load("fcdb", tmp_path, Decoding(max_pixels=60))
        assert records.sizes.tolist() == [[6, 10], [6, 10], [6, 10], [4, 8], [5, 10]]
        for i in range(len(records)):
            assert decode(records.photo(i), records.decoding).shape == (*records.sizes[i], 3)

    def test_the_official_split_is_that_of_the_crops_that_people_drew(self, folder, tmp_path):
        records, _ = load("fcdb", tmp_path)
        assert records.splits == ("train",) * 3 + ("test",) * 2
        test = split_records(records, "test", "official", 0)
        assert test.pairs is not None
        assert test.pairs.rows.tolist() == [[0, 1]]
        assert best_crops(folder, "train") == {"11_9bdc_c.jpg": (2, 1, 10, 7)}

    def test_a_photograph_that_cannot_be_read_costs_its_own_crops(self, folder, tmp_path):
        (folder / "data" / "22_9bdc_c.jpg").write_bytes(b"text")
        records, skipped = load("fcdb", tmp_path)
        assert records.sizes[3:].tolist() == [[0, 0], [0, 0]]
        assert skipped == dict.fromkeys(records.ids[3:], "is no picture in a format that can be read")

    @pytest.mark.parametrize(
        ("file", "text", "said"),
        [
            ("ranking_annotation", '[{"url": "a/11_9bdc_c.jpg", "crops": [{}]}]', "entry 1: expected crops"),
            ("ranking_annotation", "[{", "is damaged or not what it should be"),
            ("ranking_annotation", '[{"link": 1}]', "is damaged or not what it should be"),
            ("cropping_testing_set", '[{"url": "a/b.jpg", "crop": [1, 2]}]', "entry 1: expected crop, four"),
        ],
    )
    def test_a_broken_file_is_named(self, folder, tmp_path, file, text, said):
        (folder / f"{file}.json").write_text(text)
        with pytest.raises(UsageError, match=rf"{file}\.json.*{said}"):
            load("fcdb", tmp_path)

    def test_most_of_the_photographs_must_be_there(self, folder, tmp_path):
        (folder / "data" / "11_9bdc_c.jpg").unlink()
        with pytest.raises(UsageError, match=r"2 of 4 photographs are missing in .*data: complete"):
            load("fcdb", tmp_path)

    @pytest.mark.parametrize("gone", ["ranking_annotation.json", "cropping_testing_set.json", "data"])
    def test_what_is_missing_is_named(self, folder, tmp_path, gone):
        (folder / gone).rename(folder / "elsewhere")
        with pytest.raises(UsageError, match=rf"{gone} is missing in .*fcdb. Put there: ranking_annotation"):
            load("fcdb", tmp_path)


class TestFolder:
    """A folder with `pairs.csv`."""

    CROPS = "file,x0,y0,w0,h0,x1,y1,w1,h1,votes0,votes1\n"

    @pytest.fixture
    def folder(self, tmp_path):
        for number, name in enumerate("abc"):
            save(tmp_path / f"{name}.png", number, (12 + number, 20))
        return tmp_path

    def test_crops_alone_are_read_as_they_are(self, folder):
        lines = ["b.png,1,2,10,8,0,0,20,13,1,4", "b.png,0,0,20,13,1,1,5,6,5,0"]
        (folder / "pairs.csv").write_text(self.CROPS + "\n".join(lines))
        (folder / "best.csv").write_text("file,x,y,w,h\na.png,1,1,4,4\n")
        records, skipped = load("folder", folder)
        assert not skipped
        assert records.ids == ("b.png@0,0,20,13", "b.png@1,1,5,6", "b.png@1,2,10,8")
        assert records.groups == ("b.png",) * 3
        assert records.pairs is not None
        assert records.pairs.rows.tolist() == [[2, 0], [0, 1]]
        np.testing.assert_allclose(records.pairs.shares, [0.2, 1])
        np.testing.assert_array_equal(decode(records.photo(2)), PIXELS[1, 2:10, 1:11])

    def test_better_and_worse_pictures_beside_scores(self, folder):
        (folder / "scores.csv").write_text("file,score\na.png,0.25\nb.png,0.75\n")
        (folder / "pairs.csv").write_text("\ufeffbetter,worse,who\nc.png,a.png,me\n./a.png,b.png,you\n")
        records, _ = load("folder", folder)
        assert records.ids == ("a.png", "b.png", "c.png")
        np.testing.assert_array_equal(records.scores, np.array([0.25, 0.75, np.nan], np.float32))
        assert records.good.tolist() == [False, True, False]
        assert records.pairs is not None
        assert records.pairs.rows.tolist() == [[2, 0], [0, 1]]
        assert records.pairs.shares.tolist() == [1, 1]

    def test_tables_are_understood_as_other_programs_write_them(self, folder):
        (folder / "pairs.csv").write_text("File0;FILE1 ; votes0;votes1\n A.png ;b.png; 1;3\n")
        records, _ = load("folder", folder)
        assert records.ids == ("a.png", "b.png")
        assert records.pairs is not None
        assert records.pairs.shares.tolist() == [0.25]

    def test_votes_for_two_files_and_lines_without_votes(self, folder):
        (folder / "pairs.csv").write_text("file0,file1,votes0,votes1\na.png,b.png,1,3\nb.png,c.png,0,0\n")
        records, _ = load("folder", folder)
        assert records.ids == ("a.png", "b.png")  # what nobody judged is not looked at
        assert records.pairs is not None
        assert records.pairs.shares.tolist() == [0.25]

    def test_a_picture_that_is_not_there_is_named_by_its_crops(self, folder):
        (folder / "pairs.csv").write_text(self.CROPS + "x.png,1,2,10,8,0,0,20,13,1,4\n")
        records, skipped = load("folder", folder)
        assert not records.sizes.any()
        assert skipped == dict.fromkeys(("x.png@0,0,20,13", "x.png@1,2,10,8"), "there is no such file")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                "better,best\na.png,b.png\n",
                "line 1: its columns are none of better,worse; file0,file1",
            ),
            ("better,worse\na.png,./a.png\n", "line 2: a picture is compared with itself"),
            ("better,worse\na.png\n", "line 2: other fields than the heading's 2"),
            ("better,worse\n", "compares nothing"),
            ("better,worse,worse\na.png,b.png,c.png\n", "line 1: its columns are none of"),
            ("better,worse\na.png,../b.png\n", "line 2: ../b.png lies outside the folder; --outside-files"),
            ("better,worse\n/etc/a.png,b.png\n", "line 2: /etc/a.png lies outside the folder"),
            ("better,worse\nout.png,b.png\n", "line 2: out.png leads out of the folder"),
            ("better,worse\ngs://b/a.png,b.png\n", "line 2: the file gs://b/a.png is an address"),
            ("better,worse\n,b.png\n", "line 2: no file is named"),
            ("file0,file1,votes0,votes1\na.png,b.png,1,-1\n", "line 2: votes1 is '-1', no whole number"),
            (CROPS + "a.png,1,2,30,8,0,0,20,12,1,4\n", r"line 2: the crop 1,2,30,8 .* is not inside a\.png"),
            (CROPS + "a.png,1,2,0,8,0,0,20,12,1,4\n", r"line 2: the crop 1,2,0,8 .* is not inside a\.png"),
            (CROPS + "a.png,1,2,.5,8,0,0,20,12,1,4\n", r"line 2: w0 is '\.5', no whole number"),
        ],
    )
    def test_a_bad_line_is_named(self, folder, text, said):
        (folder / "pairs.csv").write_text(text)
        (folder / "out.png").symlink_to(folder.parent / "elsewhere.png")
        with pytest.raises(UsageError, match=said):
            load("folder", folder)
