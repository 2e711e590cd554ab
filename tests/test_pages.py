"""The pages in a real browser: Chromium of the system, driven by Playwright."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_gallery import HOSTILE

from spp_jax.config import RunConfig
from spp_jax.scoring import Entry, in_series, ranked
from spp_jax.scoring.gallery import Gallery

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (spp_jax[browser])"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this system")
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
JUDGE = SimpleNamespace(config=RunConfig())
"""All that a thumbnail needs of a judge."""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def opened(browser):
    """Opens a page's file; at the end nothing was said on its console, and nothing was asked of a network."""
    contexts, said, asked = [], [], []

    def open_page(file, **options):
        context = browser.new_context(**({"viewport": {"width": 1000, "height": 700}} | options))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def collection(folder, names, scores, *, explained=0, times=None, attributes=("score",)):
    """A gallery of pictures of one colour; the best are explained by made-up numbers."""
    photos = [folder / "photos" / name for name in names]
    for place, photo in enumerate(photos):
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (90, 60), (40 + 9 * (place % 20), 90, 140)).save(photo, "PNG")
    entries = [
        Entry(i, photo, name, np.atleast_1d(np.float32(score)), height=60, width=90, taken=times and times[i])
        for i, (photo, name, score) in enumerate(zip(photos, names, scores, strict=True))
    ]
    entries = in_series(ranked(entries))
    gallery = Gallery(folder / "gallery")
    gallery.complete(JUDGE, entries, int)  # pyright: ignore[reportArgumentType]
    for entry in sorted(entries, key=lambda entry: entry.rank or 0)[:explained]:
        file = gallery._why(entry.path, "x", 0)
        for ending in (".jpg", ".png"):
            Image.new("RGB", (90, 60), "teal").save(file.with_suffix(ending))
        why = {
            "window": 20,
            "low": 0.2,
            "high": 0.9,
            "logit": 1.25,
            "parts": [["base", -0.5], ["map 0, 1x1", 1.75]],
        }
        why |= {"winners": [[0.5, 0.5, 0.4], [0.1, 0.2, -0.2]]}
        why |= {"crops": [{"box": [0.1, 0.1, 0.6, 0.9], "score": 0.95, "aspect": "1:1"}]}
        file.write_text(json.dumps(why))
    return gallery.write(entries, attributes, digest="x", best=explained, title="Album")


NAMES = ("beach.png", "dunes.png", "house.png", "beach house.png", "cat.png")
SCORES = (0.31, 0.84, 0.62, 0.5, 0.77)


def shown_from(page, part: str) -> None:
    """Wait until the large picture is this one; the page's policy forbids to evaluate a text for that."""
    page.locator(f"#photo[src*='{part}']").wait_for(state="attached")


def names(page):
    return page.locator(".card:visible .caption bdi").all_text_contents()


def focused(page):
    return page.evaluate("document.activeElement.querySelector('bdi')?.textContent")


@pytest.fixture
def album(tmp_path, opened):
    return opened(collection(tmp_path, NAMES, SCORES, explained=2))


class TestGrid:
    def test_the_best_is_first_and_the_order_follows_the_choice(self, album):
        best = ["dunes.png", "cat.png", "house.png", "beach house.png", "beach.png"]
        assert names(album) == best
        assert album.locator(".score").all_text_contents() == ["0.84", "0.77", "0.62", "0.50", "0.31"]
        assert album.locator(".rank").first.text_content() == "#1"
        album.select_option("#order", "worst")
        assert names(album) == best[::-1]
        album.select_option("#order", "name")
        assert names(album) == sorted(NAMES)
        assert not album.locator("#series").is_visible()
        assert not album.locator("#attribute").is_visible()

    def test_filters_by_words_of_the_name_and_by_score(self, album):
        album.fill("#name", "house  BEACH")
        assert names(album) == ["beach house.png"]
        assert album.text_content("#count") == "1 of 5 photographs"
        album.fill("#name", "")
        album.locator("#low").fill("0.6")
        assert names(album) == ["dunes.png", "cat.png", "house.png"]
        assert album.text_content("#low-said") == "0.60"
        album.locator("#high").fill("0.8")
        assert names(album) == ["cat.png", "house.png"]
        album.fill("#name", "nothing")
        assert names(album) == []
        assert album.locator("#none").is_visible()

    def test_the_keyboard_goes_everywhere(self, album):
        album.locator("[tabindex='0']").first.focus()
        assert focused(album) == "dunes.png"
        for key, name in (
            ("ArrowRight", "cat.png"),
            ("End", "beach.png"),
            ("ArrowRight", "beach.png"),
            ("ArrowLeft", "beach house.png"),
            ("Home", "dunes.png"),
            ("ArrowLeft", "dunes.png"),
        ):
            album.keyboard.press(key)
            assert focused(album) == name
        assert album.locator(".card [tabindex='0']").count() == 1
        album.keyboard.press("/")
        album.keyboard.type("cat")
        assert names(album) == ["cat.png"]
        album.keyboard.press("Enter")
        assert focused(album) == "cat.png"
        album.keyboard.press("/")
        album.keyboard.press("Escape")
        assert len(names(album)) == 5

    def test_keys_go_among_photographs_before_anything_has_the_focus(self, album):
        album.keyboard.press("End")
        assert focused(album) == "beach.png"

    def test_up_and_down_go_to_the_row_above_and_below(self, tmp_path, opened):
        page = opened(collection(tmp_path, [f"{i:02}.png" for i in range(12)], np.linspace(0.9, 0.1, 12)))
        rows: dict[float, list[str]] = {}
        for card in page.locator(".card").all():
            rows.setdefault(round(card.bounding_box()["y"]), []).append(card.locator("bdi").text_content())
        first, second = list(rows.values())[:2]
        page.locator("[tabindex='0']").first.focus()
        page.keyboard.press("ArrowDown")
        assert focused(page) == second[0]
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowUp")
        assert focused(page) in first[:2]

    def test_series_are_together_with_their_pick_or_show_it_alone(self, tmp_path, opened):
        times = ["2024-05-01T12:00:00", "2024-05-01T12:00:01", "2024-05-02T12:00:00", None, None]
        page = opened(collection(tmp_path, NAMES, SCORES, times=times))
        assert page.locator(".star").count() == 1
        page.select_option("#series", "picks")
        assert names(page) == ["dunes.png", "cat.png", "house.png", "beach house.png"]
        page.select_option("#series", "together")
        assert names(page) == ["dunes.png", "beach.png", "cat.png", "house.png", "beach house.png"]
        assert "Series 1" in page.locator(".heading").first.text_content()
        assert "the pick (★) is best of 2" in page.locator(".heading").first.text_content()
        page.select_option("#series", "all")
        page.select_option("#order", "taken")
        assert names(page)[:3] == ["beach.png", "dunes.png", "house.png"]

    def test_each_of_several_attributes_orders_and_ranks(self, tmp_path, opened):
        both = [(0.9, 0.1), (0.2, 0.8)]
        page = opened(collection(tmp_path, NAMES[:2], both, attributes=("quality", "beauty")))
        assert names(page) == ["beach.png", "dunes.png"]
        page.select_option("#attribute", label="beauty")
        assert names(page) == ["dunes.png", "beach.png"]
        assert page.locator(".score").first.text_content() == "0.80"
        page.keyboard.press("Tab")
        page.locator(".card button").first.click()
        assert page.text_content("#view-place") == "beauty: rank 1 of 2"

    def test_ten_thousand_are_all_there_and_few_pictures_are_loaded(self, tmp_path, opened):
        count = 10_000
        file = collection(tmp_path, ["one.png"], [0.5])
        start, end = '<script type="application/json" id="data">', "</script>"
        text = file.read_text()
        at = text.index(start) + len(start)
        data = json.loads(text[at : text.index(end, at)])
        one = data["photos"][0]
        data["photos"] = [
            one | {"name": f"{i:05}.png", "scores": [1 - i / count], "thumb": f"{one['thumb']}?{i}"}
            for i in range(count)
        ]
        file.write_text(text[:at] + json.dumps(data) + text[text.index(end, at) :])
        page = opened(file)
        assert page.locator(".card").count() == count
        loaded = "[...document.querySelectorAll('.card img')].filter((img) => img.naturalWidth).length"
        assert 0 < page.evaluate(loaded) < 500
        height = page.evaluate("document.documentElement.scrollHeight")
        page.locator("[tabindex='0']").first.focus()
        page.keyboard.press("End")
        assert focused(page) == "09999.png"
        assert page.evaluate("window.scrollY") > height / 2
        assert page.evaluate("document.documentElement.scrollHeight") == height  # nothing jumps
        page.fill("#name", "0123")
        assert len(names(page)) == 11


class TestView:
    def test_a_click_shows_the_photograph_with_map_winners_and_crops(self, album):
        album.locator(".card button").first.click()
        assert album.locator("#view").is_visible()
        assert album.text_content("#view-name") == "dunes.png"
        assert album.text_content("#view-score") == "0.84"
        assert album.text_content("#view-place") == "rank 1 of 5, 100th percentile"
        shown_from(album, "views/")
        assert not album.locator("#map").is_visible()
        album.keyboard.press("m")
        assert album.locator("#map").is_visible()
        assert album.text_content("#extent") == "this photograph: 0.20 to 0.90"
        album.keyboard.press("w")
        assert album.locator("#marks circle.up:visible, #marks circle.down:visible").count() == 2
        crop = album.locator(".crop")
        assert crop.text_content() == "0.95 1:1"
        crop.click()
        assert crop.get_attribute("aria-pressed") == "true"
        assert album.locator("#marks rect:visible").count() == 1
        assert album.locator("#marks path:visible").count() == 1
        assert album.locator("#parts tr").count() == 2
        assert album.text_content("#logit") == "They add up to 1.25, the log odds of the score."

    def test_one_that_was_not_explained_says_so_and_shows_the_file(self, album):
        album.locator(".card button").nth(3).click()
        assert album.locator("#no-why").is_visible()
        assert not album.locator("#why").is_visible()
        assert "made for the 2 best alone" in album.text_content("#no-why")
        shown_from(album, "photos/beach%20house.png")
        assert album.evaluate("document.getElementById('photo').naturalWidth") == 90
        assert album.locator("#file").get_attribute("href") == "../photos/beach%20house.png"

    def test_arrows_go_on_and_escape_gives_the_focus_back(self, album):
        album.locator("[tabindex='0']").first.focus()
        album.keyboard.press("Enter")
        assert album.locator("#previous").is_disabled()
        album.keyboard.press("ArrowRight")
        album.keyboard.press("ArrowRight")
        assert album.text_content("#view-name") == "house.png"
        album.keyboard.press("End")
        assert album.text_content("#view-name") == "beach.png"
        assert album.locator("#next").is_disabled()
        album.keyboard.press("Escape")
        assert not album.locator("#view").is_visible()
        assert focused(album) == "beach.png"

    def test_a_photograph_that_is_gone_leaves_its_thumbnail(self, tmp_path, browser):
        page = browser.new_page()
        file = collection(tmp_path, NAMES[:1], SCORES[:1])
        (tmp_path / "photos" / "beach.png").unlink()
        page.goto(file.as_uri())
        page.locator(".card button").first.click()
        page.wait_for_load_state("networkidle")
        assert "thumbs/" in page.locator("#photo").get_attribute("src")
        assert page.evaluate("document.getElementById('photo').naturalWidth") == 90
        page.close()


def test_hostile_names_run_nothing_and_are_found(tmp_path, opened):
    page = opened(collection(tmp_path, HOSTILE, np.linspace(0.9, 0.1, len(HOSTILE))))
    shown = names(page)
    assert shown[:2] == list(HOSTILE[:2])
    assert shown[4] == "two\\x0alines\\u202egnp.png"
    for place in range(len(HOSTILE)):
        page.locator(".card button").nth(place).click()
        assert page.text_content("#view-name") == shown[place]
        page.locator("#photo:not([src*='thumbs/'])").wait_for(state="attached")
        assert page.evaluate("document.getElementById('photo').naturalWidth") == 90
        page.keyboard.press("Escape")
    assert page.locator("body script").count() == 2
    assert page.locator("img[onerror], b[onclick]").count() == 0


class TestLooks:
    def brightness(self, page, tmp_path):
        page.screenshot(path=tmp_path / "shot.png")
        with Image.open(tmp_path / "shot.png") as shot:
            return np.asarray(shot.convert("L"))[-5:].mean()

    def test_light_and_dark_follow_the_system_and_paper_is_white(self, tmp_path, opened):
        file = collection(tmp_path, NAMES, SCORES)
        assert self.brightness(opened(file, color_scheme="light"), tmp_path) > 230
        page = opened(file, color_scheme="dark")
        assert self.brightness(page, tmp_path) < 40
        page.emulate_media(media="print")
        assert self.brightness(page, tmp_path) > 250
        assert not page.locator("#filters").is_visible()
        assert len(names(page)) == 5
        assert page.pdf().startswith(b"%PDF")

    def test_on_a_narrow_screen_nothing_reaches_beyond_it(self, tmp_path, opened):
        page = opened(
            collection(tmp_path, NAMES, SCORES, explained=1), viewport={"width": 360, "height": 640}
        )
        wide = "document.documentElement.scrollWidth"
        assert page.evaluate(wide) == 360
        page.locator(".card button").first.click()
        assert page.evaluate("document.getElementById('view').scrollWidth") == 360

    def test_every_control_has_a_name(self, album):
        unnamed = """() => [...document.querySelectorAll('button, input, select, a')].filter((element) =>
            !(element.ariaLabel || element.textContent.trim() || element.labels?.length)).length"""
        assert album.evaluate(unnamed) == 0
        label = album.locator(".card button").first.get_attribute("aria-label")
        assert label == "dunes.png: score 0.84, rank 1 of 5"


def test_the_report_of_a_run_opens_and_asks_nothing_of_a_network(tmp_path, opened):
    from test_report import flat, written

    file = tmp_path / "report.html"
    written(file, flat([0.2, 0.9]), [0.3, 0.8])
    page = opened(Path(file))
    assert page.locator("figure img").count() == 6
    assert page.evaluate("[...document.images].every((img) => img.naturalWidth > 0)")


def test_cards_far_from_the_screen_are_filled_when_they_come_near_and_all_for_print(tmp_path, opened):
    many = 400
    page = opened(collection(tmp_path, [f"{i}.png" for i in range(many)], np.linspace(1, 0, many)))
    cards, filled = page.locator(".card"), page.locator(".card button")
    assert cards.count() == many
    assert filled.count() < many
    cards.last.scroll_into_view_if_needed()
    playwright.expect(cards.last.locator("bdi")).to_have_text(f"{many - 1}.png")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert filled.count() == many
