"""`spp-jax app`: its options, and its page in a real browser where gradio and Chromium are there."""

import contextlib
import gc
import socket
import sys
import threading
import urllib.error
import urllib.request
import warnings

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from spp_jax import Scorer, create_model
from spp_jax.cli import app as app_command
from spp_jax.config import RunConfig


def run(capsys, *arguments):
    status = app_command.main([*arguments])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return status, said


class TestOptions:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--port", "70000"], "--port must be from 0 to 65535, not 70000"),
            (["--most-mib", "0"], "--most-mib must be at least 1, not 0"),
            (["--host", "no such host"], "--host no such host: "),
        ],
    )
    def test_wrong_use_is_one_line(self, capsys, arguments, said):
        status, told = run(capsys, *arguments)
        assert status == 2
        assert said in told

    def test_a_port_that_is_taken_is_said_before_anything_is_loaded(self, capsys):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            status, said = run(capsys, "--port", str(port))
        assert status == 2
        assert f"--port {port} of 127.0.0.1: " in said

    def test_without_gradio_the_extra_is_named(self, capsys, monkeypatch):
        monkeypatch.delitem(sys.modules, "spp_jax.cli.app_page", raising=False)
        monkeypatch.setitem(sys.modules, "gradio", None)
        status, said = run(capsys, "--port", "0")
        assert status == 2
        assert "spp-jax app needs gradio: pip install 'spp_jax[app]'" in said


def tiny(**config):
    model = create_model("compact", widths=(4, 8), hidden=8, rngs=nnx.Rngs(0))
    model.head.logits.kernel[...] = np.random.default_rng(0).normal(size=(8, 1)).astype(np.float32)
    return Scorer(model, RunConfig(**config))


@pytest.fixture(scope="module")
def page_module():
    pytest.importorskip("gradio", reason="gradio is not installed (spp_jax[app])")
    from spp_jax.cli import app_page

    yield app_page
    with warnings.catch_warnings():  # gradio's client leaves event loops open
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    file = tmp_path_factory.mktemp("photos") / "a<b>'.png"
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    pixels[:, :80] = 90
    Image.fromarray(pixels).save(file)
    return file


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # said by gradio and what it stands on
class TestAnswer:
    def test_says_the_score_the_map_the_winners_and_the_crops(self, page_module, photo):
        scorer = tiny()
        found = page_module.answer(scorer, photo)
        score = float(scorer.score([photo])[0])
        assert f"<b>{score:.2f}</b>" in found.verdict
        assert found.photo.size == found.map.size == found.winners.size == (160, 120)
        crops = scorer.crops(photo, count=6)
        assert [said.split(",")[0] for _, said in found.crops] == [f"{crop.score:.2f}" for crop in crops]
        for (picture, _), crop in zip(found.crops, crops, strict=True):
            assert picture.size == (crop.box[2] - crop.box[0], crop.box[3] - crop.box[1])
        assert found.parts.count("<tr>") == len(scorer.explain(photo).parts)

    def test_what_cannot_be_read_is_said_as_text(self, page_module, tmp_path):
        bad = tmp_path / "bad.jpg"
        bad.write_bytes(b"<script>alert(1)</script>")
        found = page_module.answer(tiny(), bad)
        assert "It cannot be judged" in found.verdict
        assert "<script" not in found.verdict
        assert found.photo is None
        assert page_module.answer(tiny(), None) == page_module.Answer("")

    def test_limits_hold(self, page_module, photo):
        found = page_module.answer(tiny(refuse_pixels=100), photo)
        assert "It cannot be judged" in found.verdict

    def test_a_judge_of_parts_explains_nothing_and_says_so(self, page_module, photo):
        found = page_module.answer(tiny(input="crop"), photo)
        assert "<b>" in found.verdict
        assert "it explains none" in found.verdict
        assert found.map is None


@contextlib.contextmanager
def served(page_module, scorer, most_mib=1):
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        app = page_module.application(scorer, "127.0.0.1", most_mib)
        thread = threading.Thread(target=page_module.serve, args=(app, listening, stop))
        thread.start()
        try:
            yield address
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of sockets that the server's loop leaves at its end
class TestServed:
    def test_only_who_asks_by_this_machines_name_is_answered_and_under_a_policy(self, page_module):
        with served(page_module, tiny()) as address:
            with urllib.request.urlopen(address, timeout=60) as reply:
                policy = reply.headers["Content-Security-Policy"]
            assert "connect-src 'self'" in policy
            assert "unsafe-eval" not in policy
            stranger = urllib.request.Request(address, headers={"Host": "evil.example"})
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(stranger, timeout=60)
            assert refused.value.code == 400
            refused.value.close()

    def test_a_file_that_is_too_large_is_refused_by_the_server_too(self, page_module):
        form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        with served(page_module, tiny()) as address:

            def upload(size):
                request = urllib.request.Request(
                    f"{address}/gradio_api/upload",
                    form + bytes(size) + b"\r\n--x--\r\n",
                    {"Content-Type": "multipart/form-data; boundary=x"},
                )
                return urllib.request.urlopen(request, timeout=60)

            with pytest.raises(urllib.error.HTTPError) as refused:
                upload(2**20 + 1)
            assert refused.value.code == 413
            refused.value.close()
            with upload(100) as reply:
                assert reply.status == 200

    def test_a_photograph_that_is_dropped_is_judged_and_nothing_leaves_the_machine(
        self, page_module, photo, tmp_path
    ):
        pages = pytest.importorskip("test_pages", reason="playwright is not installed (spp_jax[browser])")
        if pages.CHROMIUM is None:
            pytest.skip("there is no Chromium on this system")
        scorer, asked, said = tiny(), [], []
        large = tmp_path / "large.png"
        large.write_bytes(bytes(2**20 + 1))
        with served(page_module, scorer) as address, pages.playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=pages.CHROMIUM, args=pages.ARGUMENTS)
            page = browser.new_page()
            page.set_default_timeout(120_000)  # what it is judged with is compiled first
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(address)
            box = page.locator("#drop input[type=file]")
            box.wait_for(state="attached")
            self.drop(page, photo)
            page.locator("#verdict b").wait_for()
            assert page.locator("#verdict b").text_content() == f"{float(scorer.score([photo])[0]):.2f}"
            page.locator("#photo img").wait_for()
            for tab, where in (
                ("Map", "#map img"),
                ("Winners", "#winners img"),
                ("Best crops", "#crops img"),
            ):
                page.get_by_role("tab", name=tab).click()
                page.locator(where).first.wait_for()
            assert said == []
            page.get_by_label("Clear").first.click()
            box.wait_for(state="attached")
            page.set_input_files("#drop input[type=file]", large)
            page.get_by_text("maximum allowed size").first.wait_for()
            browser.close()
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []

    def drop(self, page, photo):
        """As a hand does: the file in a data transfer, let go over the box."""
        page.evaluate(
            """async ([name, bytes]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
                const box = document.querySelector("#drop input[type=file]").closest("button");
                for (const kind of ["dragenter", "dragover", "drop"])
                    box.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true}));
            }""",
            [photo.name, list(photo.read_bytes())],
        )
