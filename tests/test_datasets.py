"""Each data set from tiny downloads in its very format, written here."""

import csv
import io
import logging
import logging.handlers
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from conftest import Cloud
from PIL import Image

from spp_jax.addresses import path_at
from spp_jax.config import Decoding
from spp_jax.data import list_datasets, load_dataset, scanning
from spp_jax.data.columns import read_columns, write_columns
from spp_jax.data.decoding import UnreadableError, decode
from spp_jax.data.records import split_records
from spp_jax.errors import UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 20, 3), np.uint8)


def save(path: Path, number: int, size: tuple[int, int] = (12, 20), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS[number % 40, : size[0], : min(size[1], 20)]).save(path, **options)


def cells(names) -> np.ndarray:
    array = np.empty((1, len(names)), object)
    array[0] = names
    return array


def live_iqa(folder: Path) -> None:
    """Two pictures of each kind; the second is an undamaged copy."""
    kinds = ("jp2k", "jpeg", "wn", "gblur", "fastfading")
    for number, kind in enumerate(kinds):
        save(folder / kind / "img1.bmp", number)
        save(folder / kind / "img2.bmp", number + 10)
    dmos = np.array([[20.0, 0, 30, 0, 40, 0, 70, 0, 120, 0]])
    scipy.io.savemat(folder / "dmos.mat", {"dmos": dmos, "orgs": np.array([[0, 1] * 5], np.uint8)})
    names = [f"ref{i // 4}.bmp" for i in range(10)]
    scipy.io.savemat(folder / "refnames_all.mat", {"refnames_all": cells(names)})


def live_wild(folder: Path) -> None:
    names = [f"t{i}.bmp" for i in range(1, 8)] + ["3.bmp", "4.bmp", "10.JPG"]
    for number, name in enumerate(names[7:]):
        save(folder / "Images" / name, number)
    (folder / "Data").mkdir()
    listed = {"AllImages_release": cells(names).T}
    scipy.io.savemat(folder / "Data" / "AllImages_release.mat", listed)
    mos = np.array([[50.0] * 7 + [63.9, 35.2, 50.0]])
    scipy.io.savemat(folder / "Data" / "AllMOS_release.mat", {"AllMOS_release": mos})


def koniq10k(folder: Path) -> None:
    for number in range(4):
        save(folder / "1024x768" / f"{number}.jpg", number)
    heading = ["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "MOS_zscore"]
    rows = [
        ["0.jpg", 0, 0, 0, 0, 10],
        ["1.jpg", 10, 0, 0, 0, 0],
        ["2.jpg", 0, 5, 5, 0, 0],
        ["3.jpg", 0, 0, 4, 0, 0],
    ]
    with (folder / "koniq10k_scores_and_distributions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([heading, *([*row, sum(row[1:]), 0, 0, 0] for row in rows)])
    parts = ["training", "training", "validation", "test"]
    with (folder / "koniq10k_distributions_sets.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["image_name", "set"], *([f"{i}.jpg", part] for i, part in enumerate(parts))]
        )


def ava(folder: Path) -> None:
    votes = {"953619": [0, 1, 5, 17, 38, 36, 15, 6, 5, 1], "953958": [10, 7, 15, 26, 26, 21, 10, 8, 1, 2]}
    votes |= {"954184": [0, 0, 0, 0, 5, 0, 0, 0, 0, 0], "954113": [0, 0, 0, 1, 0, 1, 1, 0, 0, 0]}
    for number, name in enumerate(votes):
        save(folder / "images" / f"{name}.jpg", number)
    lines = [f"{i} {name} {' '.join(map(str, v))} 1 22 1396" for i, (name, v) in enumerate(votes.items(), 1)]
    (folder / "AVA.txt").write_text("\n".join(lines) + "\n")
    (folder / "aesthetics_image_lists").mkdir()
    (folder / "aesthetics_image_lists" / "generic_test.jpgl").write_text("953958\n")


def savoias(folder: Path) -> None:
    for number, name in enumerate(("a.jpg", "b.png")):
        save(folder / name, number)
    (folder / "scores.csv").write_text("file,score,category\na.jpg,0.2,scenes\nb.png,0.9,objects\n")


def biq2021(folder: Path) -> None:
    """As released: blanks in the names, two empty columns in one table alone, a score below 0."""
    tables = {
        "Train": ("ss01 (12).jpg,0.1931,,", "ss03 (7088).jpg,0.8165,,"),
        "Test": ("ss02 (4).jpg,-0.0047",),
    }
    for number, (part, rows) in enumerate(tables.items()):
        heading = "Image Name,MOS" + ",," * (part == "Train")
        (folder / f"{part} (Images and MOS).csv").write_text("\n".join([heading, *rows]) + "\n")
        for place, row in enumerate(rows):
            save(folder / "Images" / row.split(",")[0], number + 2 * place)


OASIS = (
    '"","Theme","Category","Source","Valence_mean","Valence_SD","Valence_N","Arousal_mean","Arousal_SD",'
    '"Arousal_N"\n'
    '"I1","Acorns 1 ","Object","Pixabay",4.685,1.2,101,2.347,1.5,95\n'
    '"I59","Beach 1","Scene","Pixabay",6.375,0.9,101,4.739,1.8,95\n'
    '"I15","Angry face 1","Person","Pixabay",3.389,0.9,101,3.261,1.8,95\n'
    '"I67","Bear 1","Animal","Pixabay",5.149,0.9,101,3.343,1.8,95\n'
)
BEAUTY = (
    "item,beauty_mean,Theme,Category,Valence_mean,Arousal_mean,beauty_SD,N,subset,women_beauty_mean,"
    "men_beauty_mean,gender_diff_beauty,,\n"
    "1,4.86,Acorns1,Object,4.69,2.35,1.48,140,subset2,4.81,4.91,-0.10,,\n"
    "15,3.39,Angryface1,Person,3.39,3.26,1.70,104,subset4,3.55,3.76,-0.21,,\n"
    "59,6.43,Beach1,Scene,6.37,4.74,1.01,145,subset3,5.43,4.30,1.13,,6\n"
)


def oasis(folder: Path) -> None:
    """A theme with a blank at its end, one with none in its file's name, and one without beauty ratings."""
    (folder / "OASIS.csv").write_text(OASIS)
    (folder / "means_per_image.csv").write_text(BEAUTY)
    for number, name in enumerate(("Acorns 1", "Beach1", "Angry face 1", "Bear 1")):
        save(folder / "images" / f"{name}.jpg", number)


def vessel(folder: Path) -> None:
    rows = ["are,aep_001.jpg,2.929824561403509", "ari,aip_001.jpg,4.549019607843137", "art,art_001.jpg,3.6"]
    rows += ["fac,F.a.01.jpg,2.2833333333333337", "lsc,eqlsc001.jpg,5.722222222222222"]
    table = "\n".join(["image_type,image_name,rating", *rows]) + "\n"
    (folder / "vessel_means_per_image.csv").write_text(table)
    for number, row in enumerate((*rows[:2], rows[4])):  # of paintings and faces none is needed
        save(folder / "images" / row.split(",")[1], number)


EXPECTED = {
    "biq2021": {
        "ss01 (12).jpg": (0.1931, False, "ss01 (12).jpg"),
        "ss02 (4).jpg": (0.0, False, "ss02 (4).jpg"),
        "ss03 (7088).jpg": (0.8165, True, "ss03 (7088).jpg"),
    },
    "oasis": {
        "Acorns1": (3.86 / 6, True, "Acorns1"),
        "Beach1": (5.43 / 6, True, "Beach1"),
    },
    "vessel": {
        "aep_001.jpg": (0.3216374, False, "aep_001.jpg"),
        "aip_001.jpg": (0.5915033, True, "aip_001.jpg"),
        "eqlsc001.jpg": (0.7870370, True, "eqlsc001.jpg"),
    },
    "live_iqa": {
        "fastfading/img1.bmp": (0.0, False, "ref2.bmp"),
        "gblur/img1.bmp": (0.3, False, "ref1.bmp"),
        "jp2k/img1.bmp": (0.8, True, "ref0.bmp"),
        "jpeg/img1.bmp": (0.7, True, "ref0.bmp"),
        "wn/img1.bmp": (0.6, True, "ref1.bmp"),
    },
    "live_wild": {
        "10.JPG": (0.5, True, "10.JPG"),
        "3.bmp": (0.639, True, "3.bmp"),
        "4.bmp": (0.352, False, "4.bmp"),
    },
    "koniq10k": {
        "0.jpg": (1.0, True, "0.jpg"),
        "1.jpg": (0.0, False, "1.jpg"),
        "2.jpg": (0.375, False, "2.jpg"),
        "3.jpg": (0.5, True, "3.jpg"),
    },
    "ava": {
        "953619": ((2 + 15 + 68 + 190 + 216 + 105 + 48 + 45 + 10) / 1240, True, "953619"),
        "953958": ((10 + 14 + 45 + 104 + 130 + 126 + 70 + 64 + 9 + 20) / 1260, False, "953958"),
        "954113": (17 / 30, True, "954113"),
        "954184": (0.5, False, "954184"),  # a mean of exactly 5 is not above 5
    },
    "savoias": {
        "objects/b.png": (0.9, True, "objects/b.png"),
        "scenes/a.jpg": (0.2, False, "scenes/a.jpg"),
    },
}
MAKE = {"live_iqa": live_iqa, "live_wild": live_wild, "koniq10k": koniq10k, "ava": ava, "savoias": savoias}
MAKE |= {"biq2021": biq2021, "oasis": oasis, "vessel": vessel}


@pytest.fixture
def download(tmp_path):
    def download(name: str) -> Path:
        folder = tmp_path / "manual" / name
        folder.mkdir(parents=True)
        MAKE[name](folder)
        return folder

    return download


def load(name: str, data_dir: Path, decoding: Decoding = Decoding(), **options):  # noqa: B008
    """Records, reasons, and what is logged meanwhile."""
    log, told = logging.getLogger("spp_jax"), logging.handlers.BufferingHandler(capacity=100)
    before = log.level
    log.addHandler(told)
    log.setLevel(logging.INFO)
    try:
        found = load_dataset(name, data_dir, decoding, **options)
    finally:
        log.removeHandler(told)
        log.setLevel(before)
    return (*found, [record.getMessage() for record in told.buffer])


@pytest.mark.parametrize("name", MAKE)
def test_scores_groups_sizes_and_pictures_are_the_sources(name, download, tmp_path):
    folder = download(name)
    records, skipped, said = load(name, tmp_path)
    assert not skipped
    assert len(said) == 1  # that it is prepared
    assert dict.fromkeys(records.ids) == dict.fromkeys(EXPECTED[name])
    for i, (score, good, group) in enumerate(EXPECTED[name].values()):
        assert records.scores[i] == pytest.approx(score, abs=1e-6)
        assert records.good[i] == good
        assert records.groups[i] == group
        assert decode(records.photo(i)).shape == (*records.sizes[i], 3) == (12, 20, 3)
    again, _, said = load(name, tmp_path)
    assert not said  # prepared already
    assert again.digest() == records.digest()
    assert np.array_equal(decode(again.photo(1)), decode(records.photo(1)))
    changed = next(path for path in sorted(folder.rglob("*")) if path.suffix in (".bmp", ".jpg"))
    save(changed, 30, (16, 20))
    other, _, said = load(name, tmp_path)
    assert len(said) == 1  # not served from the old copy
    assert (other.sizes == (16, 20)).all(axis=1).sum() == (
        1 if name != "live_iqa" or "img1" in changed.name else 0
    )


@pytest.mark.parametrize(
    ("name", "categories"),
    [
        ("biq2021", ("gallery", "taken for it", "from the web")),
        ("oasis", ("object", "scene")),
        ("vessel", ("exterior", "interior", "landscape")),
        ("savoias", ("objects", "scenes")),
        ("live_iqa", ("fastfading", "gblur", "jp2k", "jpeg", "wn")),
        ("live_wild", ()),
    ],
)
def test_categories_are_the_sources_kinds(name, categories, download, tmp_path):
    download(name)
    records, _, _ = load(name, tmp_path)
    assert records.categories == categories
    assert records.take([1]).categories == categories[1:2]


def test_the_official_split_of_biq2021_is_its_two_tables(download, tmp_path):
    folder = download("biq2021")
    records, _, _ = load("biq2021", tmp_path)
    assert records.splits == ("train", "test", "train")
    for part in ("Train", "Test"):  # as an earlier release has them
        (folder / f"{part} (Images and MOS).csv").rename(folder / f"{part}.csv")
    assert load("biq2021", tmp_path)[0].digest() == records.digest()


def test_what_else_people_said_of_oasis_are_further_labels(download, tmp_path):
    download("oasis")
    records, _, _ = load("oasis", tmp_path)
    assert records.attributes == ("beauty",)
    np.testing.assert_allclose(records.labels["valence"], [3.685 / 6, 5.375 / 6], rtol=1e-5)
    np.testing.assert_allclose(records.labels["arousal"], [1.347 / 6, 3.739 / 6], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "table", "line", "said"),
    [
        ("biq2021", "Test (Images and MOS).csv", "ss02 (5).jpg,good", "line 3: the MOS 'good' is no number"),
        ("biq2021", "Test (Images and MOS).csv", "ss02 (5).jpg", "line 3: cut short"),
        (
            "oasis",
            "OASIS.csv",
            '"I9","Beach 1","Scene","",7.3,1,1,3,1,1',
            "line 6: '7.3' is no mean of marks",
        ),
        ("oasis", "means_per_image.csv", "60,,Beach2,Scene", "line 5: '' is no mean of marks of 1 to 7"),
        ("vessel", "vessel_means_per_image.csv", "lsc,eqlsc002.jpg,0.5", "line 7: '0.5' is no mean of marks"),
    ],
)
def test_a_broken_line_of_a_table_is_named(name, table, line, said, download, tmp_path):
    folder = download(name)
    with (folder / table).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError, match=re.escape(f"{folder / table}, {said}")):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "table"), [("biq2021", "Test (Images and MOS).csv"), ("oasis", "OASIS.csv")]
)
def test_a_table_of_other_columns_is_not_the_data_sets(name, table, download, tmp_path):
    (download(name) / table).write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"has no column .*: it is not the data set's file"):
        load(name, tmp_path)


def test_votes_and_official_splits_are_the_sources(download, tmp_path):
    download("koniq10k")
    records, _, _ = load("koniq10k", tmp_path)
    assert records.labels["votes"][2].tolist() == [0, 0.5, 0.5, 0, 0]
    assert records.splits == ("train", "train", "validation", "test")
    assert split_records(records, "test", "official", 0).ids == ("3.jpg",)
    download("ava")
    records, _, _ = load("ava", tmp_path)
    assert records.labels["votes"].shape == (4, 10)
    np.testing.assert_allclose(records.labels["votes"].sum(axis=1), 1, rtol=1e-6)
    assert split_records(records, "test", "official", 0).ids == ("953958",)
    held = [split_records(records, split, "official", 0).ids for split in ("train", "validation")]
    assert sorted(held[0] + held[1]) == ["953619", "954113", "954184"]
    assert len(held[1]) == 1
    download("savoias")
    records, _, _ = load("savoias", tmp_path)
    with pytest.raises(ValueError, match="no official split of this data set"):
        split_records(records, "test", "official", 0)


@pytest.mark.parametrize(
    ("name", "gone", "said"),
    [
        ("live_iqa", "dmos.mat", "dmos.mat is missing in .*live_iqa. Put there: LIVE IQA release 2"),
        ("live_iqa", "wn", "wn is missing in"),
        ("live_iqa", "jpeg/img1.bmp", "1 of 5 pictures are missing in .*, such as jpeg/img1.bmp"),
        ("live_iqa", "jpeg/img2.bmp", r"10 scores, .* jp2k 2 \(of 227\), jpeg 1 \(of 233\)"),
        ("live_wild", "Data/AllMOS_release.mat", "AllMOS_release.mat is missing"),
        ("live_wild", "Images/4.bmp", "1 of 3 pictures are missing in .*, such as Images/4.bmp"),
        ("koniq10k", "koniq10k_scores_and_distributions.csv", "distributions.csv is missing"),
        ("koniq10k", "1024x768", "1024x768 or 512x384 is missing"),
        ("ava", "AVA.txt", "AVA.txt is missing"),
        ("ava", "images/953619.jpg", "complete the download"),
        ("savoias", "scores.csv", "scores.csv is missing"),
        ("biq2021", "Test (Images and MOS).csv", r"Test \(Images and MOS\)\.csv or Test\.csv is missing"),
        ("biq2021", "Images", "Images is missing in"),
        ("oasis", "means_per_image.csv", "means_per_image.csv is missing"),
        ("oasis", "images/Beach1.jpg", "1 of 2 pictures are missing in .*, such as images/Beach1.jpg"),
        ("vessel", "images", "images or vessel is missing in"),
    ],
)
def test_a_partial_download_names_what_is_missing_and_where(name, gone, said, download, tmp_path):
    path = download(name) / gone
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(UsageError, match=said):
        load(name, tmp_path)


def test_nothing_downloaded_says_which_files_to_put_where(tmp_path):
    for name in MAKE:
        with pytest.raises(UsageError, match=rf"is missing in .*manual/{name}. Put there: "):
            load(name, tmp_path)


@pytest.mark.parametrize(
    "line", ["1 953619 1 2 3", "1", "1 2 x 1 1 1 1 1 1 1 1 1", "1 2 0 0 0 0 0 0 0 0 0 0 1 1 1"]
)
def test_a_broken_line_of_ava_is_named(line, download, tmp_path):
    folder = download("ava")
    with (folder / "AVA.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError, match=r"AVA.txt, line 5: "):
        load("ava", tmp_path)


def test_pictures_that_cannot_be_read_are_named_and_the_others_served(download, tmp_path):
    folder = download("savoias")
    (folder / "a.jpg").write_bytes(b"text")
    for _ in ("preparing", "prepared"):
        records, skipped, _ = load("savoias", tmp_path)
        assert records.ids == ("objects/b.png", "scenes/a.jpg")
        assert records.sizes.tolist() == [[12, 20], [0, 0]]
        assert skipped == {"scenes/a.jpg": "is no picture in a format that can be read"}
    records, skipped, _ = load("savoias", tmp_path, Decoding(refuse_pixels=239))
    assert not records.sizes.any()
    assert skipped["objects/b.png"] == "has 240 pixels, more than 239"


def test_nobody_is_told_of_a_download_where_there_is_none(download, tmp_path, capsys):
    download("savoias")
    load("savoias", tmp_path)
    said = capsys.readouterr()
    assert "ownload" not in said.out + said.err


@pytest.mark.parametrize("counts", ["", "x,1,1,1,1", "0,0,0,0,0", "1,1"])
def test_a_broken_line_of_koniq_is_named(counts, download, tmp_path):
    folder = download("koniq10k")
    with (folder / "koniq10k_scores_and_distributions.csv").open("a") as file:
        file.write(f"0.jpg,{counts}\n")
    with pytest.raises(UsageError, match=r"distributions\.csv, line 6: (c1 to c5 are no counts|cut short)"):
        load("koniq10k", tmp_path)


def test_annotations_that_name_no_picture_are_refused(download, tmp_path):
    folder = download("ava")
    (folder / "AVA.txt").write_text("")
    with pytest.raises(UsageError, match="name no picture: they are empty or cut short"):
        load("ava", tmp_path)


def test_sizes_are_those_after_exif_and_scaling_down(download, tmp_path):
    folder = download("savoias")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(folder / "b.png", 0, exif=exif)
    records, _, _ = load("savoias", tmp_path)
    assert records.sizes.tolist() == [[20, 12], [12, 20]]
    records, _, _ = load("savoias", tmp_path, Decoding(max_pixels=60))
    assert records.sizes.tolist() == [[10, 6], [6, 10]]
    assert decode(records.photo(0), records.decoding).shape == (10, 6, 3)


def test_a_damaged_index_is_made_again(download, tmp_path):
    download("savoias")
    records, _, _ = load("savoias", tmp_path)
    (index,) = tmp_path.rglob("index.npz")
    index.write_bytes(index.read_bytes()[:100])
    again, _, _ = load("savoias", tmp_path)
    assert again.digest() == records.digest()


def test_an_unknown_data_set_is_told_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match=", ".join(list_datasets())):
        load("nosuch", tmp_path)


class TestFolder:
    """Any folder with a CSV of scores."""

    @pytest.fixture
    def folder(self, tmp_path):
        for number in range(4):
            save(tmp_path / "in here" / f"ph oto-é{number}.png", number, (12 + number, 20))
        return tmp_path

    def write(self, folder: Path, text: str, encoding: str = "utf-8", name: str = "scores.csv") -> None:
        (folder / name).write_bytes(text.encode(encoding))

    GOOD = "file,score\nin here/ph oto-é1.png,0.25\nin here/ph oto-é0.png, 0.75\n"

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    @pytest.mark.parametrize("ends", ["\n", "\r\n"])
    @pytest.mark.parametrize("name", ["scores.csv", "mine.csv"])
    def test_is_read_in_place_in_order_of_file(self, folder, encoding, ends, name):
        self.write(folder, self.GOOD.replace("\n", ends), encoding, name)
        records, skipped, _ = load("folder", folder)
        assert not skipped
        assert records.ids == ("in here/ph oto-é0.png", "in here/ph oto-é1.png")
        assert records.scores.tolist() == [0.75, 0.25]
        assert records.good.tolist() == [True, False]
        assert records.groups == records.ids
        assert records.splits == ()
        assert records.sizes.tolist() == [[12, 20], [13, 20]]
        np.testing.assert_array_equal(decode(records.photo(1)), PIXELS[1, :13, :20])

    def test_groups_and_an_official_split_are_columns(self, folder):
        rows = "".join(
            f"in here/ph oto-é{i}.png,0.5,g{i % 2},{part},x\n" for i, part in enumerate(("train", "test"))
        )
        self.write(folder, "file,score,group,split,note\n" + rows)
        records, _, _ = load("folder", folder)
        assert records.groups == ("g0", "g1")
        assert records.splits == ("train", "test")

    def test_categories_and_columns_of_numbers_are_kept(self, folder):
        further = (("0.25", "sea,.5,1"), ("0.75", "sea,,x"), ("", "hill,1,"))
        rows = [f"in here/ph oto-é{i}.png,{score},{rest}" for i, (score, rest) in enumerate(further)]
        self.write(folder, "\n".join(["file,score,category,colour,note", *rows]))
        records, _, _ = load("folder", folder)
        assert records.categories == ("sea", "sea", "hill")
        assert set(records.labels) == {"colour"}  # a note is none
        np.testing.assert_array_equal(records.labels["colour"], np.array([0.5, np.nan, 1], np.float32))
        np.testing.assert_array_equal(records.scores, np.array([0.25, 0.75, np.nan], np.float32))
        assert records.groups == records.ids  # a category is no group

    def test_labels_may_have_a_decimal_comma_and_columns_that_are_there_twice_are_none(self, folder):
        self.write(folder, "file;score;a;b;b\nin here/ph oto-é0.png;0,5;,25;1;1\n")
        records, _, _ = load("folder", folder)
        assert set(records.labels) == {"a"}
        assert records.labels["a"].tolist() == [0.25]

    def test_without_a_score_column_others_are_judged(self, folder):
        self.write(folder, "file,a,b\nin here/ph oto-é0.png,0.5,1\nin here/ph oto-é1.png,0,7\n")
        records, _, _ = load("folder", folder)
        assert records.judged_by(["a"]).scores.tolist() == [0.5, 0]
        with pytest.raises(ValueError, match=r"the b of in here/ph oto-é1\.png is 7, not in 0 to 1: scale"):
            records.judged_by(["a", "b"])
        with pytest.raises(ValueError, match="needs score, which no picture has; there are labels a, b"):
            records.labelled(("score",))

    def test_an_edited_table_or_picture_is_seen(self, folder):
        self.write(folder, self.GOOD)
        load("folder", folder)
        self.write(folder, self.GOOD.replace("0.75", "0.5"))
        save(folder / "in here" / "ph oto-é0.png", 5, (30, 20))
        records, _, _ = load("folder", folder)
        assert records.scores.tolist() == [0.5, 0.25]
        assert records.sizes.tolist() == [[30, 20], [13, 20]]

    @pytest.mark.parametrize(
        ("lines", "said"),
        [
            (["file,points", "a.png,x"], "line 1: no column 'score'; expected file,score"),
            (["file,score", "a.png,0.1", "b.png,"], "line 3: the score '' is no number"),
            (["file,score", "a.png,high"], "line 2: the score 'high' is no number"),
            (["file,score", "a.png,0.1", "b.png,nan"], "line 3: the score nan is not in 0 to 1"),
            (["file,score", "a.png,7"], "line 2: the score 7 is not in 0 to 1; scale"),
            (["file,score", "a.png,0.1", "a.png,0.2"], "line 3: a.png is on line 2 already"),
            (["file,score", "a.png,0.1", "./x/../a.png,0.2"], "line 3: a.png is on line 2 already"),
            (["file,score", "a.png"], "line 2: other fields than the heading's 2"),
            (["file,score", "a.png,0.1,0.2"], "line 2: other fields than the heading's 2"),
            (["file,score", ",0.1"], "line 2: no file is named"),
            (["file,score,split", "a.png,0.1,later"], "line 2: split 'later' is none of train"),
            (["file,score"], "has no line below its heading"),
            ([""], "no column 'file'"),
            (["file,score,category,category", "a,1,x,y"], "line 1: there are 2 columns 'category'"),
            (["file,score", "a,0_1"], "line 2: the score '0_1' is no number"),
            (["sep=;", "file;score", "a;x"], "line 3: the score 'x' is no number"),
        ],
    )
    def test_a_bad_line_is_named(self, folder, lines, said):
        self.write(folder, "\n".join(lines))
        with pytest.raises(UsageError, match=said):
            load("folder", folder)

    def test_a_table_in_another_encoding_is_refused(self, folder):
        self.write(folder, self.GOOD, "latin-1")
        with pytest.raises(UsageError, match=r"cannot be read as a CSV file in UTF-8: .*; save it as CSV"):
            load("folder", folder)

    @pytest.mark.parametrize("name", ["a\0.png", "x/\0/y.png", "n" * 5000])
    @pytest.mark.parametrize("table", ["scores", "pairs"])
    def test_a_name_that_no_file_can_have_costs_its_line(self, folder, table, name):
        lines = (
            "better,worse\nin here/ph oto-é0.png,in here/ph oto-é1.png\n" + f"{name},in here/ph oto-é0.png\n"
        )
        self.write(folder, self.GOOD + (f"{name},0.5\n" if table == "scores" else ""))
        if table == "pairs":
            (folder / "pairs.csv").write_text(lines, encoding="utf-8")
        records, skipped, _ = load("folder", folder)
        assert len(records) == 3
        (reason,) = skipped.values()
        assert "there is no such file" in reason or "cannot be reached" in reason

    def test_a_missing_or_broken_picture_is_skipped_with_its_line(self, folder):
        (folder / "broken.png").write_bytes(b"x")
        self.write(folder, self.GOOD + "gone.png,0.5\nbroken.png,0.5\n")
        records, skipped, _ = load("folder", folder)
        assert records.ids[:2] == ("broken.png", "gone.png")
        assert records.sizes.tolist() == [[0, 0], [0, 0], [12, 20], [13, 20]]
        assert skipped == {
            "gone.png": "scores.csv, line 4: there is no such file",
            "broken.png": "scores.csv, line 5: is no picture in a format that can be read",
        }

    @pytest.mark.parametrize("name", ["/etc/hostname", "../a.png", "x/../../a.png"])
    def test_a_file_outside_is_refused_with_its_line_and_the_option(self, folder, name):
        self.write(folder, self.GOOD + f"{name},0.5\n")
        with pytest.raises(UsageError, match=r"line 4: .* lies outside the folder; --outside-files allows"):
            load("folder", folder)
        records, _, _ = load("folder", folder, outside_files=True)
        assert len(records) == 3

    @pytest.mark.parametrize("of", ["file", "folder"])
    def test_a_link_that_leaves_the_folder_is_refused_unless_allowed(self, folder, tmp_path_factory, of):
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        save(elsewhere / "x.png", 7)
        (folder / "l").symlink_to(elsewhere if of == "folder" else elsewhere / "x.png")
        self.write(folder, self.GOOD + ("l/x.png,0.5\n" if of == "folder" else "l,0.5\n"))
        with pytest.raises(UsageError, match=r"line 4: l.* leads out of the folder; --outside-files"):
            load("folder", folder)
        records, skipped, _ = load("folder", folder, outside_files=True)
        assert len(records) == 3
        assert not skipped
        (folder / "inner").symlink_to("in here")
        self.write(folder, "file,score\ninner/ph oto-é0.png,0.5\n")
        assert not load("folder", folder)[1]

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("file,score,score\na.png,0.1,0.2\n", "line 1: there are 2 columns 'score'"),
            ("file,score,File\na.png,0.1,b.png\n", "line 1: there are 2 columns 'file'"),
            ("file,points\na.png,one\n", "line 1: no column 'score'; .* found 'file,points'"),
            ("file.score\n", "line 1: no column 'file'; .* found 'file.score'"),
            ("fi\x1ble,score\na.png,1\n", r"found 'fi\\\\x1ble,score'"),
        ],
    )
    def test_a_heading_that_cannot_be_understood_is_shown(self, folder, text, line):
        self.write(folder, text)
        with pytest.raises(UsageError, match=line):
            load("folder", folder)

    @pytest.mark.parametrize(
        "text",
        [
            "file;score\nin here/ph oto-é0.png;0,75\n",
            "file\tscore\nin here/ph oto-é0.png\t.75\n",
            " File , SCORE\nin here/ph oto-é0.png , 0.75\n",
            "\n\nfile,score\nin here\\ph oto-é0.png,0.75\n",
            "file,score\nIN HERE/Ph oto-É0.PNG,0.75\n",
            "file,score\nin here/ph oto-e\u03010.png,0.75\n",
            'note;file;score\n"a, b";"in here\\ph oto-e\u03010.png";"0,75"\n',
            "sep=;\r\nfile;score\r\nin here/ph oto-é0.png;0,75\r\n",
        ],
    )
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_tables_as_other_programs_write_them_are_understood(self, folder, text, encoding):
        self.write(folder, text, encoding)
        records, skipped, said = load("folder", folder)
        assert not skipped
        assert records.ids == ("in here/ph oto-é0.png",)
        assert records.groups == records.ids
        assert records.scores.tolist() == [0.75]
        assert len(said) == ("ph oto-é0.png" not in text or "\\" in text)

    def test_names_with_blanks_and_odd_characters_are_found(self, folder):
        names = [" a.png", "b.png ", "c\u2028d.png", "e\u202ef.png", "g,h.png", "i\\j.png"]
        for number, name in enumerate(names):
            save(folder / name, number, format="PNG")
        self.write(folder, "file,score\n" + "".join(f'"{name}",0.5\n' for name in names))
        records, skipped, said = load("folder", folder)
        assert not skipped
        assert not said
        assert records.ids == tuple(sorted(names))

    def test_what_could_be_several_files_is_none(self, folder):
        for name in ("A.png", "a.png"):
            save(folder / name, 0)
        self.write(folder, "file,score\na.PNG,0.5\n")
        assert load("folder", folder)[1] == {"a.PNG": "scores.csv, line 2: there is no such file"}

    def test_two_names_of_one_file_are_refused(self, folder):
        self.write(folder, self.GOOD + "in here\\ph oto-é0.png,0.5\n")
        with pytest.raises(UsageError, match=r"line 4: .*é0\.png is on line 3 already"):
            load("folder", folder)

    def test_equal_files_are_one_group_and_contradictions_are_told(self, folder):
        for name in ("x.png", "y.png"):
            shutil.copy(folder / "in here" / "ph oto-é1.png", folder / name)
        lines = ["x.png,0.25,p,train", "y.png,0.5,q,test", "in here/ph oto-é1.png,0.25,r,train"]
        lines += ["in here/ph oto-é0.png,0.5,q,test", "in here/ph oto-é2.png,0.5,s,test"]
        self.write(folder, "file,score,group,split\n" + "\n".join(lines))
        for _ in ("read", "remembered"):
            records, _, said = load("folder", folder)
            by_name = dict(zip(records.ids, records.groups, strict=True))
            assert len({by_name[name] for name in ("x.png", "y.png", "in here/ph oto-é1.png")}) == 1
            assert by_name["in here/ph oto-é0.png"] == by_name["y.png"]  # of its group before
            assert by_name["in here/ph oto-é2.png"] == "s"
            assert said == [
                "3 pictures are copies, of 1 different; copies are of one group",
                "scores.csv: 1 of these files have several scores: in here/ph oto-é1.png (line 4): 0.25; "
                "x.png (line 2): 0.25; y.png (line 3): 0.5",
                "scores.csv: 1 of these files have several parts of the official split: "
                "in here/ph oto-é1.png (line 4): train; x.png (line 2): train; y.png (line 3): test",
            ]
        save(folder / "y.png", 9, (13, 20))
        assert load("folder", folder)[2][0].startswith("2 pictures are copies")

    def test_copies_with_other_labels_and_categories_are_told_and_a_blank_is_no_contradiction(self, folder):
        shutil.copy(folder / "in here" / "ph oto-é1.png", folder / "x.png")
        lines = ["x.png,,0.2,sea,mine", "in here/ph oto-é1.png,0.25,0.9,hill,yours"]
        self.write(folder, "file,score,beauty,category,note\n" + "\n".join(lines))
        assert load("folder", folder)[2][1:] == [
            "scores.csv: 1 of these files have several values of beauty: in here/ph oto-é1.png (line 3): "
            "0.9; x.png (line 2): 0.2",
            "scores.csv: 1 of these files have several values of category: in here/ph oto-é1.png (line 3): "
            "hill; x.png (line 2): sea",
        ]

    def test_look_alikes_are_one_group_where_asked_for(self, folder):
        pytest.importorskip("imagehash")
        rng = np.random.default_rng(0)
        for number in range(6):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
            picture = coarse.resize((160, 120), Image.Resampling.BICUBIC)
            picture.save(folder / f"{number}.png")
            picture.resize((120, 90)).save(folder / f"{number}.jpg", quality=60)
        names = [f"{number}.{ending}" for number in range(6) for ending in ("png", "jpg")]
        self.write(folder, "file,score\n" + "".join(f"{name},0.5\n" for name in names))
        assert len(set(load("folder", folder)[0].groups)) == 12
        for _ in ("seen", "remembered"):
            records, _, _ = load("folder", folder, near_duplicates=True)
            groups = dict(zip(records.ids, records.groups, strict=True))
            assert len(set(groups.values())) == 6
            assert all(groups[f"{number}.png"] == groups[f"{number}.jpg"] for number in range(6))

    def test_its_options_are_refused_of_other_data_sets(self, tmp_path):
        with pytest.raises(UsageError, match="near_duplicates is for the data set folder, not for ava"):
            load("ava", tmp_path, near_duplicates=True)

    def test_may_lie_at_an_address(self, folder, bucket):
        self.write(folder, self.GOOD)
        shutil.copytree(folder / "in here", bucket / "in here")
        shutil.copy(folder / "scores.csv", bucket)
        here, elsewhere = (load("folder", at)[0] for at in (folder, path_at("gs://bucket")))
        assert elsewhere.digest() == here.digest()
        for i in range(len(here)):
            np.testing.assert_array_equal(decode(elsewhere.photo(i)), decode(here.photo(i)))
        assert (bucket / ".spp_jax-sizes.npz").is_file()
        (bucket / "in here" / "ph oto-é0.png").unlink()
        assert list(load("folder", path_at("gs://bucket"))[1].values()) == [
            "scores.csv, line 3: there is no such file"
        ]

    def test_a_group_on_both_sides_of_the_official_split_is_refused(self, folder):
        self.write(folder, "file,score,group,split\na.png,1,x,train\nb.png,0,x,test\n")
        with pytest.raises(UsageError, match="line 3: group x is of test, on line 2 of train"):
            load("folder", folder)

    def test_an_address_is_no_file_of_a_folder(self, folder):
        self.write(folder, "file,score\ngs://bucket/a.png,1\n")
        with pytest.raises(UsageError, match=r"line 2: the file gs://bucket/a\.png is an address"):
            load("folder", folder)

    def test_a_picture_that_the_cloud_refuses_is_skipped_with_its_answer(self, folder, bucket, monkeypatch):
        shutil.copytree(folder / "in here", bucket / "in here")
        self.write(bucket, self.GOOD)
        info = Cloud.info

        def refuse(self, path, **options):
            if str(path).endswith("é1.png"):
                raise RuntimeError("401, Unauthorized")
            return info(self, path, **options)

        monkeypatch.setattr(Cloud, "info", refuse)
        _, skipped, _ = load("folder", path_at("gs://bucket"))
        assert list(skipped.values()) == ["scores.csv, line 2: cannot be reached: 401, Unauthorized"]

    def test_without_a_table_it_says_what_it_needs(self, folder):
        with pytest.raises(UsageError, match="is no CSV file; its columns are file,score"):
            load("folder", folder)
        for name in ("a.csv", "b.csv"):
            self.write(folder, self.GOOD, name=name)
        with pytest.raises(UsageError, match=r"2 CSV files, and none is scores\.csv"):
            load("folder", folder)
        with pytest.raises(UsageError, match="there is no such folder"):
            load("folder", folder / "nosuch")


class TestScanning:
    """Sizes from headers, remembered."""

    @pytest.fixture
    def folder(self, tmp_path):
        for number in range(5):
            save(tmp_path / f"{number}.png", number, (10 + number, 20))
        rows = "".join(f"{i}.png,0.5\n" for i in range(5))
        (tmp_path / "scores.csv").write_text("file,score\n" + rows)
        return tmp_path

    def test_a_second_scan_opens_only_what_is_new(self, folder, monkeypatch):
        first, _, _ = load("folder", folder)
        opened = []
        real = scanning.photo_size
        monkeypatch.setattr(
            scanning, "photo_size", lambda path, *how: (opened.append(str(path)), real(path, *how))[1]
        )
        second, _, _ = load("folder", folder)
        assert not opened
        assert second.digest() == first.digest()
        save(folder / "3.png", 9, (33, 20))
        os.utime(folder / "3.png", ns=(1, 1))
        third, _, _ = load("folder", folder)
        assert [Path(name).name for name in opened] == ["3.png"]
        assert third.sizes[3].tolist() == [33, 20]

    def test_a_damaged_memory_is_scanned_anew(self, folder):
        first, _, _ = load("folder", folder)
        for content in (b"", b"PK\x03\x04 and no more", io.BytesIO().getvalue()):
            (folder / ".spp_jax-sizes.npz").write_bytes(content)
            again, _, _ = load("folder", folder)
            assert again.digest() == first.digest()

    def test_a_folder_that_cannot_be_written_is_scanned_each_time_and_says_so(self, folder, monkeypatch):
        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "replace", refuse)
        records, _, said = load("folder", folder)
        assert len(records) == 5
        assert said == ["sizes are not kept for the next start: [Errno 13] Permission denied"]


@pytest.mark.parametrize("name", ["live_iqa", "live_wild", "ava", "koniq10k"])
def test_a_damaged_annotation_file_is_named(download, tmp_path, name):
    folder = download(name)
    ending = {"live_iqa": "dmos.mat", "live_wild": "AllMOS_release.mat", "ava": "AVA.txt"}.get(name, ".csv")
    damaged = next(path for path in sorted(folder.rglob("*")) if path.name.endswith(ending))
    damaged.write_bytes(b"\xff" + damaged.read_bytes()[:300][::-1])
    with pytest.raises(UsageError, match=re.escape(damaged.name)):
        load(name, tmp_path)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_columns_are_taken_for_none(tmp_path, seed):
    path = tmp_path / "columns.npz"
    write_columns(path, 1, {"name": np.array(["a", "b"]), "size": np.arange(4)})
    rng, content = np.random.default_rng(seed), bytearray(path.read_bytes())
    for place in rng.integers(0, len(content), 3):
        content[place] ^= int(rng.integers(1, 256))
    path.write_bytes(content)
    columns = read_columns(path, 1)
    assert columns is None or set(columns) <= {"name", "size"}


def prepared(data_dir: Path) -> tuple[Path, Path]:
    """The one file of records, and the folder it is in."""
    (file,) = [path for path in data_dir.rglob("*.array_record*") if "manual" not in path.parts]
    return file, file.parent


def test_a_damaged_record_of_a_prepared_data_set_costs_its_picture(download, tmp_path):
    download("live_wild")
    records, _, _ = load("live_wild", tmp_path)
    whole = [records.photo(i) for i in range(len(records))]
    file, folder = prepared(tmp_path)
    content = bytearray(file.read_bytes())
    place = content.find(bytes(whole[1])[100:140])  # pyright: ignore[reportArgumentType]
    assert place > 0
    content[place] ^= 0xFF
    file.write_bytes(content)
    records, skipped, _ = load("live_wild", tmp_path)
    assert not skipped
    damaged = 0
    for i, photo in enumerate(whole):
        try:
            assert records.photo(i) == photo
        except UnreadableError as error:
            damaged += 1
            assert f"remove {folder} to prepare it anew" in str(error)  # noqa: PT017
    assert damaged == 1


@pytest.mark.parametrize("what", ["records", "dataset_info.json"])
def test_a_prepared_data_set_that_lacks_something_is_said_in_a_line(download, tmp_path, what):
    download("live_wild")
    load("live_wild", tmp_path)
    file, folder = prepared(tmp_path)
    (folder / "index.npz").unlink()
    if what == "records":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        (folder / what).unlink()
    with pytest.raises(UsageError, match="remove it to prepare it anew") as caught:
        load("live_wild", tmp_path)
    assert "\n" not in str(caught.value)
