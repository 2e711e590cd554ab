import base64
import dataclasses
import io
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import noise_records, png
from PIL import Image

from spp_jax.addresses import path_at
from spp_jax.config import Decoding
from spp_jax.data.decoding import UnreadableError
from spp_jax.data.records import Records
from spp_jax.run.report import write_report

LINES = [
    {"step": 1, "loss": 0.7, "accuracy": 0.5, "pictures": 4},
    {"step": 2, "loss": 0.6, "accuracy": 0.75, "pictures": 4},
    {"step": 2, "validation": {"loss": 0.65, "accuracy": 0.6}},
]


class Page(HTMLParser):
    """What a browser would find: tags, tables as rows of cells, and the pictures of each section."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.shown: dict[str, list[tuple[str, str, str | None]]] = {}  # by heading: id, text, source
        self.text = ""
        self._rows: list[list[str]] = []
        self._inside: list[str] = []
        self._heading = ""
        self.feed(text)
        self.close()
        assert not self._inside

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("meta", "img", "br"):
            if tag == "img" and "figure" in self._inside:
                self._source = dict(attrs)["src"]
            return
        self._inside.append(tag)
        if tag == "table":
            self._rows = self.tables[str(dict(attrs)["class"]).split()[0]] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "h2":
            self._heading = ""
        elif tag == "figure":
            self._name, self._said, self._source = "", "", None

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag
        if tag == "h2":
            self.shown[self._heading] = []
        elif tag == "figure":
            self.shown[self._heading].append((self._name, self._said, self._source))

    def handle_data(self, data):
        if "style" in self._inside:
            return
        self.text += data
        if "td" in self._inside or "th" in self._inside:
            self._rows[-1][-1] += data
        elif "h2" in self._inside:
            self._heading += data
        elif "figure" in self._inside:
            self._said += data
            self._name += data if "b" in self._inside else ""

    def ids(self, heading: str) -> list[str]:
        return [name for name, _, _ in self.shown[heading]]


BEST, WORST, WRONG = "Best scores", "Worst scores", "Largest disagreements with the label"


def flat(labels: list[float], **changes) -> Records:
    """Pictures of one colour, 30 high and 40 wide, with these labels."""
    count = len(labels)
    pictures = [png(np.full((30, 40, 3), 20 + i, np.uint8)) for i in range(count)]
    records = Records(
        ids=tuple(f"p{i}" for i in range(count)),
        sizes=np.full((count, 2), (30, 40), np.int64),
        photo=pictures.__getitem__,
        scores=np.asarray(labels, np.float32),
        good=np.asarray(labels, np.float32) >= 0.5,
        groups=tuple(f"p{i}" for i in range(count)),
    )
    return dataclasses.replace(records, **changes)


def written(path, records, scores, *, title="run", facts=None, lines=LINES) -> bytes:
    write_report(
        path,
        title=title,
        facts=facts or {},
        lines=lines,
        epochs_done=lambda step: step / 2,
        records=records,
        scores=np.asarray(scores, np.float32),
    )
    return path.read_bytes()


@pytest.fixture
def page(tmp_path):
    return lambda *args, **options: Page(written(tmp_path / "report.html", *args, **options).decode())


def picture(source: str | None) -> Image.Image:
    kind, content = re.fullmatch(r"data:image/(png|jpeg);base64,(\S+)", source or "").groups()  # pyright: ignore[reportOptionalMemberAccess]
    found = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
    found.load()
    assert found.format == kind.upper()
    return found


def test_the_figures_and_the_confusion_table_of_a_case_worked_by_hand(page):
    labels = [0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1]
    scores = [0.9, 0.5, 0.6, 0.4, 0.45, 0.7, 0.2, np.nan]  # good: 3 of 4 found; others: 2 of 3
    found = page(flat(labels), scores)
    assert found.tables["confusion"] == [
        ["", "judged good", "judged not good"],
        ["good", "3 (75.0%)", "1 (25.0%)"],
        ["not good", "1 (33.3%)", "2 (66.7%)"],
    ]
    figures = dict(found.tables["figures"])
    assert figures["pictures scored"] == "7"
    assert figures["pictures without a score"] == "1"
    assert figures["accuracy"] == "0.714"
    # ranks 7 6 5 4 3 2 1 against 7 4 5 2 3 6 1: 1 - 6*(4 + 4 + 16)/(7*48)
    assert figures["SRCC"] == "0.571"


def test_figures_come_first_and_the_configuration_last(page):
    found = page(flat([0.1, 0.9]), [0.2, 0.8], facts={"epochs": "30"})
    headings = ["Agreement with the labels", "Plots", BEST, WORST, WRONG, "The run"]
    assert list(found.shown) == headings
    assert found.text.index("The run") < found.text.index("epochs")
    assert {"SRCC", "PLCC", "KRCC", "AUC"} <= set(dict(found.tables["figures"]))


def test_what_is_truly_good_is_what_the_source_says_not_its_label(page):
    found = page(flat([0.45, 0.44], good=np.array([True, False])), [0.9, 0.1])
    assert found.tables["confusion"][1:] == [
        ["good", "1 (100.0%)", "0 (0.0%)"],
        ["not good", "0 (0.0%)", "1 (100.0%)"],
    ]


def test_the_six_best_worst_and_most_wrongly_scored_are_in_order_and_equals_by_id(page):
    scores = [0.1, 0.9, 0.5, 0.5, 0.2, 0.5, 0.8, 0.7, 0.6, 0.3]
    labels = [0.1, 0.9, 0.5, 0.1, 0.2, 0.5, 0.1, 0.8, 0.6, 0.5]
    records = flat(labels, ids=tuple("jihgfedcba"))
    found = page(records, scores)
    assert found.ids(BEST) == ["i", "d", "c", "b", "e", "g"]  # e, g and h are equal
    assert found.ids(WORST) == ["j", "f", "a", "e", "g", "h"]
    assert found.ids(WRONG) == ["d", "g", "a", "c", "b", "e"]  # .7 .4 .2 .1, then the right ones by name
    name, said, _ = found.shown[WRONG][0]
    assert name == "d"
    assert "score 0.800, label 0.100" in said


def test_pictures_without_score_or_label_are_left_out_where_they_have_no_place(page):
    found = page(flat([0.2, np.nan, 0.4]), [np.nan, 0.9, 0.3])
    assert found.ids(BEST) == ["p1", "p2"]
    assert found.ids(WORST) == ["p2", "p1"]
    assert found.ids(WRONG) == ["p2"]
    assert "label none" in found.shown[BEST][0][1]
    assert "nan" not in found.text


def test_hostile_texts_are_shown_as_they_are(page):
    evil = '"><script>alert(1)</script><img src=x onerror=y>&amp;'
    broken = "caf\udce9.jpg"  # a name on the disk that is not UTF-8
    found = page(
        flat([0.5, 0.6], ids=(evil, broken)), [0.5, 0.6], title=f"a {evil}", facts={f"b {evil}": f"c {evil}"}
    )
    assert found.ids(BEST) == [r"caf\udce9.jpg", evil]
    assert found.tables["facts"] == [[f"b {evil}", f"c {evil}"]]
    assert found.text.count(f"a {evil}") == 2  # title and heading
    assert not [tag for tag, _ in found.tags if tag == "script"]
    assert not [attributes for _, attributes in found.tags if "onerror" in attributes]
    assert evil in [attributes.get("alt") for _, attributes in found.tags]


def test_a_hostile_reason_is_shown_as_it_is(page):
    def photo(i: int) -> bytes:
        raise UnreadableError("<script>alert(1)</script>")

    found = page(flat([0.5], photo=photo), [0.5])
    assert "cannot be shown: <script>alert(1)</script>" in found.shown[BEST][0][1]


def test_a_picture_that_can_no_longer_be_decoded_shows_why(page, tmp_path):
    photos = [png(np.zeros((9, 9, 3), np.uint8)), b"<b>no picture", tmp_path / "gone.jpg"]
    found = page(flat([0.5, 0.6, 0.7], photo=photos.__getitem__), [0.5, 0.6, 0.7])
    (gone, why_gone, nothing), (broken, why_broken, also_nothing), (whole, _, source) = found.shown[BEST]
    assert (gone, broken, whole) == ("p2", "p1", "p0")
    assert nothing is None
    assert also_nothing is None
    assert picture(source).size == (9, 9)
    assert "there is no such file" in why_gone
    assert "is no picture in a format that can be read" in why_broken


@pytest.mark.parametrize("scores", [[], [np.nan], [np.nan, np.nan]], ids=str)
def test_without_a_readable_picture_the_page_says_so(page, scores):
    found = page(flat([0.5] * len(scores)), scores)
    assert "No picture has a score." in found.text
    assert found.tables["figures"] == [["pictures without a score", str(len(scores))]]
    assert found.ids(BEST) == found.ids(WORST) == found.ids(WRONG) == []
    assert found.text.count("There are none.") == 3
    assert [attributes["alt"] for tag, attributes in found.tags if tag == "img"] == [
        "accuracy and loss by epoch"
    ]


def test_a_single_readable_picture_has_no_correlation_and_fills_every_row(page):
    found = page(flat([0.5, 0.9]), [np.nan, 0.8], lines=[])
    figures = dict(found.tables["figures"])
    assert figures["SRCC"] == figures["PLCC"] == "undefined"
    assert found.ids(BEST) == found.ids(WORST) == found.ids(WRONG) == ["p1"]
    assert found.tables["confusion"][2] == ["not good", "0 (of none)", "0 (of none)"]


def test_thumbnails_keep_the_aspect_ratio_and_are_never_larger_than_the_picture(page):
    shapes = [(300, 600), (960, 480), (20, 50), (1, 4000)]
    photos = [np.full((*shape, 3), 90, np.uint8) for shape in shapes]
    records = flat([0.5] * 4, photo=photos.__getitem__)
    sizes = [picture(source).size for _, _, source in page(records, [0.9, 0.8, 0.7, 0.6]).shown[BEST]]
    assert sizes == [(192, 96), (96, 192), (50, 20), (192, 1)]


def test_thumbnails_show_the_picture_as_it_was_scored(page):
    clear = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(clear, "PNG")
    records = flat([0.5], photo=lambda i: clear.getvalue(), decoding=Decoding(background=(250, 0, 0)))
    pixels = np.asarray(picture(page(records, [0.5]).shown[BEST][0][2]), np.int64)
    assert np.abs(pixels - (250, 0, 0)).max() <= 3  # JPEG


def test_nothing_is_fetched_or_run_and_every_plot_is_a_picture(page):
    found = page(noise_records(20), np.linspace(0, 1, 20))
    sources = [attributes["src"] for _, attributes in found.tags if "src" in attributes]
    assert len(sources) == 2 + 3 * 6
    for source in sources:
        assert picture(source).width > 0
    active = {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio", "svg", "a"}
    assert not active & {tag for tag, _ in found.tags}
    assert not {"href", "srcset", "style"} & {name for _, attributes in found.tags for name in attributes}


def test_no_address_is_in_the_page(tmp_path):
    text = written(tmp_path / "report.html", noise_records(8), np.linspace(0, 1, 8)).decode()
    assert not re.search(r"://|url\(|@import|src=\"(?!data:)", text)


def test_the_same_input_gives_the_same_bytes_on_a_disk_and_at_an_address(tmp_path, bucket):
    records, scores = noise_records(20), np.round(np.linspace(0, 1, 20), 1)
    pages = {
        written(path, records, scores, facts={"model": "compact"})
        for path in (tmp_path / "new" / "a.html", tmp_path / "b.html", path_at("gs://bucket/run/c.html"))
    }
    assert len(pages) == 1
    assert (bucket / "run" / "c.html").read_bytes() in pages


def test_without_matplotlib_there_is_a_line_in_place_of_the_plots(page, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = page(flat([0.2, 0.9]), [0.3, 0.8])
    assert "There are no plots: matplotlib is not installed" in found.text
    assert "plot" not in [attributes.get("class") for _, attributes in found.tags]
    assert found.ids(BEST) == ["p1", "p0"]


def test_scores_of_other_pictures_are_refused(page):
    with pytest.raises(ValueError, match=r"scores \(3,\) of 2 records must be \[2\]"):
        page(flat([0.2, 0.9]), [0.3, 0.8, 0.1])
