"""The page in a real browser: Debian's chromium, headless. Skipped where playwright or chromium is not installed.

apt-get update && apt-get install -y --no-install-recommends chromium
"""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from tiny_folder import write_model

from llava.inference.engine import Engine
from llava.serve.web import __main__ as program
from llava.serve.web.uploads import UploadFolder

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("gradio", reason="gradio is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install --no-install-recommends chromium"),
]

WAITING = 2
DESKTOP, PHONE, NARROW = (1280, 900), (390, 844), (320, 640)
PATIENCE = 60_000  # milliseconds; on a busy machine an answer may take seconds


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any, UploadFolder]]:
    """A server in this process: its address, its page, and the folder of uploads."""
    model = write_model(tmp_path_factory.mktemp("models") / "llava-v1.5-tiny")
    folder = UploadFolder()
    words = ["--model-path", str(model), "--device", "cpu", "--max-new-tokens", "6", "--port", "0"]
    options = program._parser().parse_args([*words, "--waiting", str(WAITING)])
    page = program.open_page(options, folder)
    yield program.launched(page, options), page, folder
    page.blocks.close(verbose=False)
    folder.close()
    assert not folder.path.exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, served: tuple[str, Any, UploadFolder]) -> Iterator[Any]:
    """Opens the page in a browser of its own each time; errors of the page's script fail the test."""
    contexts, errors = [], []

    def opened(size: tuple[int, int] = DESKTOP, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        tab = context.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(served[0])
        tab.wait_for_selector("#ask")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red disc on grey."""
    drawn = Image.new("RGB", (112, 112), "#888888")
    ImageDraw.Draw(drawn).ellipse((20, 20, 80, 80), fill="#ee0000")
    path = tmp_path_factory.mktemp("pictures") / "disc.png"
    drawn.save(path)
    return path


def show(tab: Any, file: Path) -> None:
    """Upload a file, and wait for its small picture."""
    before = tab.locator("#pictures img").count()
    tab.set_input_files("#upload input[type=file]", str(file))
    tab.locator("#pictures img").nth(before).wait_for()


def ask(tab: Any, question: str) -> None:
    """Ask under both budgets, and wait for the last view of patches."""
    tab.fill("#question textarea", question)
    tab.click("#ask")
    tab.wait_for_selector("#view-1 .dv-map")


def count_of(tab: Any, side: int = 0) -> str:
    return str(tab.locator(f"#view-{side} .dv-count").inner_text())


def test_a_visitor_shows_a_picture_asks_compares_two_budgets_and_moves_the_layers(visit: Any, picture: Path) -> None:
    tab = visit()
    show(tab, picture)
    ask(tab, "What is red?")
    assert tab.locator("#chat-0 .dv-user").inner_text().endswith("What is red?")
    assert tab.locator("#chat-0 .dv-model").count() == tab.locator("#chat-1 .dv-model").count() == 1
    playwright.expect(tab.locator("#question textarea")).to_have_value("", timeout=PATIENCE)
    tokens = tab.locator("#comparison tbody tr").first.locator("td").all_inner_texts()
    assert tokens == ["5.7 of 16", "16 of 16"]
    assert tab.locator("#comparison polyline").count() == 2

    # DUET of tests/tiny.py: 10 tokens (one CLS) enter, 5 are left after 2 layers, 2 after 4.
    slider = tab.locator("#view-0 .dv-slider")
    assert count_of(tab) == "9 of its 9 visual tokens are here"
    slider.focus()
    tab.keyboard.press("ArrowLeft")
    assert tab.locator("#view-0 output").inner_text() == "none: the picture" and count_of(tab) == "16 patches"
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    after_first = count_of(tab)
    tab.keyboard.press("End")
    assert tab.locator("#view-0 output").inner_text() == "5, of 0 to 5"
    after_second = count_of(tab)
    assert after_first in ("4 of its 9 visual tokens are here", "5 of its 9 visual tokens are here")
    assert after_second in ("1 of its 9 visual tokens are here", "2 of its 9 visual tokens are here")
    assert tab.locator("#view-0 .dv-dropped").count() > tab.locator("#view-0 .dv-merged").count()
    assert count_of(tab, 1) == "16 of its 16 visual tokens are here"
    assert tab.locator("#view-0 .dv-words mark").inner_text().strip() == "ASSISTANT:"

    # Pointing, and clicking for those who have no mouse to point with.
    merged = tab.locator("#view-0 .dv-map").first.evaluate(
        "map => JSON.parse(map.closest('.dv-view').dataset.view).units[0].roles.indexOf(3)"
    )
    tab.locator(f'#view-0 [data-p="{merged}"]').hover()
    said = tab.locator("#view-0 .dv-said").inner_text()
    assert re.search(r"merged into visual token \d+, built around row \d, column \d; it stands for \d+ patches", said)
    assert tab.locator("#view-0 .dv-links line").count() >= 1
    tab.locator('#view-0 [data-p="0"]').click()
    assert "row 1, column 1" in tab.locator("#view-0 .dv-said").inner_text()
    tab.locator("#view-1 input[value=attention]").check()
    assert re.match(r"rgb\(", tab.locator('#view-1 [data-p="3"]').get_attribute("fill"))


def test_play_moves_the_slider_to_the_last_layer_and_stops(visit: Any) -> None:
    tab = visit()
    tab.click("#example-0")
    tab.locator("#pictures img").wait_for()
    ask(tab, "What?")
    slider, play = tab.locator("#view-0 .dv-slider"), tab.locator("#view-0 .dv-play")
    slider.focus()
    for _ in range(4):
        tab.keyboard.press("ArrowRight")
    play.click()
    assert play.get_attribute("aria-pressed") == "true"
    playwright.expect(play).to_have_attribute("aria-pressed", "false", timeout=PATIENCE)
    assert slider.input_value() == slider.get_attribute("max")


def test_a_second_visitor_does_not_see_the_first_ones_picture(
    visit: Any, picture: Path, served: tuple[str, Any, UploadFolder]
) -> None:
    address, page, folder = served
    first, paths = visit(), []
    first.on("response", lambda response: paths.append(response.json()[0]) if "/upload?" in response.url else None)
    show(first, picture)
    ask(first, "What is red?")
    second = visit()
    assert second.locator("#pictures img").count() == 0 and second.locator("#chat-0 li").count() == 0
    assert second.locator("#view-0 .dv-map").count() == 0
    assert paths and not Path(paths[0]).exists() and folder.files() == []
    closed = [f"file={place}" for place in (paths[0], "/etc/hostname", "http://example.org/")]
    for place in (*closed, f"file/{paths[0]}", "proxy=http://example.org/", "runs", "info", "%66ile=/etc/hostname"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}gradio_api/{place}")
        assert refused.value.code == 404, place
    known = len(page.visitors)
    first.context.close()
    second.wait_for_function("() => true")
    for _ in range(100):
        if len(page.visitors) < known:
            break
        second.wait_for_timeout(100)
    assert len(page.visitors) < known, "who closes the tab is forgotten"


def test_two_visitors_who_ask_at_once_get_their_own_answers(visit: Any, tmp_path: Path) -> None:
    tabs = []
    for number, colour in enumerate(("#ff0000", "#00aa00")):
        Image.new("RGB", (60 + 20 * number, 56), colour).save(tmp_path / f"{number}.png")
        tabs.append(visit())
        show(tabs[-1], tmp_path / f"{number}.png")
    for number, tab in enumerate(tabs):
        tab.fill("#question textarea", f"question number {number}")
    for tab in tabs:
        tab.click("#ask")
    for number, tab in enumerate(tabs):
        tab.wait_for_selector("#view-1 .dv-map")
        assert tab.locator("#chat-1 .dv-user .dv-text").all_inner_texts() == [f"question number {number}"]
        assert tab.locator("#chat-1 img").get_attribute("alt").startswith(f"picture 1, {60 + 20 * number} by 56")


def test_a_full_queue_refuses_in_a_sentence(visit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One question is answered, two wait, and the next is refused; those that waited are answered."""
    go_on, begun, generate = threading.Event(), threading.Event(), Engine.generate

    def slow(self: Engine, *args: Any, **more: Any) -> Any:
        begun.set()
        go_on.wait(60)
        return generate(self, *args, **more)

    monkeypatch.setattr(Engine, "generate", slow)
    tabs = [visit() for _ in range(WAITING + 2)]
    try:
        for number, tab in enumerate(tabs[:-1]):
            tab.fill("#question textarea", "Well?")
            with tab.expect_response(lambda response: "/queue/join" in response.url):
                tab.click("#ask")
            if number == 0:
                assert begun.wait(60)
        tabs[-1].fill("#question textarea", "Well?")
        tabs[-1].click("#ask")
        tabs[-1].get_by_text(re.compile("currently busy|queue is full", re.IGNORECASE)).first.wait_for()
    finally:
        go_on.set()
    for tab in tabs[:-1]:
        tab.wait_for_selector("#chat-1 .dv-model")


def _typed_until(number: Any, value: str, shown: Any) -> None:
    """Type until the page says what it should: a field that has just been opened may not listen yet."""
    for patience in (3_000, 10_000, PATIENCE):
        number.fill("0")
        number.fill(value)
        number.press("Tab")
        with contextlib.suppress(playwright.TimeoutError):
            shown.wait_for(timeout=patience)
            return
    shown.wait_for(timeout=1)


def test_what_cannot_be_read_or_does_not_fit_is_said_on_the_page(visit: Any, tmp_path: Path) -> None:
    tab = visit()
    (tmp_path / "notes.png").write_text("no picture")
    tab.set_input_files("#upload input[type=file]", str(tmp_path / "notes.png"))
    tab.locator("#status [role=alert]").wait_for()
    assert "notes.png" in tab.locator("#status").inner_text() and tab.locator("#pictures img").count() == 0
    tab.click("#by-hand-0 button")
    number = tab.locator("#layer-0-1 input[type=number]")
    _typed_until(number, "6", tab.locator("#fits-0 [role=alert]"))
    assert "a drop must come before the last layer" in tab.locator("#fits-0").inner_text()
    _typed_until(number, "5", tab.locator("#fits-0 .dv-fits"))
    playwright.expect(tab.locator("#fits-0")).to_contain_text("by layer 0-1: 10, 2-4: 5, 5-5: 2", timeout=PATIENCE)
    assert tab.locator("#budget-0 input").input_value() == "set by hand"


def test_an_enormous_upload_is_refused_before_it_lies_on_the_disk(
    visit: Any, served: tuple[str, Any, UploadFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, page, folder = served
    monkeypatch.setattr(page.blocks, "max_file_size", 10_000)
    (tmp_path / "large.png").write_bytes(bytes(60_000))
    tab = visit()
    tab.set_input_files("#upload input[type=file]", str(tmp_path / "large.png"))
    tab.get_by_text(re.compile("maximum (allowed|upload) size", re.IGNORECASE)).first.wait_for()
    assert tab.locator("#pictures img").count() == 0 and folder.files() == []


def test_what_is_typed_is_shown_as_it_was_typed(visit: Any) -> None:
    tab = visit()
    typed = "<b>bold</b> ${1+1} {{x}} &amp; <img src=x onerror=document.title=1> **stars** $x$"
    tab.fill("#question textarea", typed)
    tab.click("#ask")
    tab.wait_for_selector("#chat-1 .dv-model")
    assert tab.locator("#chat-0 .dv-user .dv-text").inner_text() == typed
    assert tab.title() == "DUET-LLaVA" and tab.locator("#chat-0 img").count() == 0


def test_nothing_is_fetched_from_anywhere_else(browser: Any, served: tuple[str, Any, UploadFolder]) -> None:
    context = browser.new_context()
    tab, asked = context.new_page(), []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(served[0])
    tab.wait_for_selector("#ask")
    tab.wait_for_timeout(1000)
    context.close()
    strangers = [url for url in asked if not url.startswith((served[0], "data:", "blob:"))]
    assert len(asked) > 5 and strangers == []


@pytest.mark.parametrize("size", [PHONE, NARROW], ids=["390", "320"])
def test_a_phone_scrolls_downwards_only(size: tuple[int, int], visit: Any) -> None:
    tab = visit(size, has_touch=True, is_mobile=True)
    tab.tap("#example-2")  # a video: its frames are a strip
    tab.locator("#pictures img").first.wait_for()
    tab.tap("#ask")
    tab.wait_for_selector("#view-1 .dv-map")
    assert tab.locator("#view-0 .dv-map").count() == 8
    wide = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert tab.evaluate(wide) == 0
    tab.tap("#by-hand-0 button")
    assert tab.evaluate(wide) == 0
    small = (
        "e => e.filter(x => x.offsetParent && x.getBoundingClientRect().height < 24).map(x => x.outerHTML.slice(0, 90))"
    )
    assert tab.locator("button:visible").evaluate_all(small) == []
    tab.locator('#view-0 .dv-map [data-p="5"]').first.tap()
    assert "row 2, column 2" in tab.locator("#view-0 .dv-said").inner_text()


def test_keys_reach_everything_and_show_where_they_are(visit: Any) -> None:
    tab = visit()
    tab.click("#example-0")
    tab.locator("#pictures img").wait_for()
    ask(tab, "What?")
    tab.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    reached = []
    for _ in range(60):
        tab.keyboard.press("Tab")
        reached.append(
            tab.evaluate(
                "() => { const e = document.activeElement, h = e.closest('[id]');"
                "return [h ? h.id : '', e.className.baseVal ?? e.className, e.type ?? ''].join(' '); }"
            )
        )
    for wanted in (
        "upload",
        "clear",
        "question",
        "ask",
        "stop",
        "new",
        "compare",
        "example-0",
        "budget-0",
        "by-hand-0",
    ):
        assert any(one.startswith(f"{wanted} ") for one in reached), wanted
    assert sum("range" in one for one in reached) >= 2 and any("dv-map" in one for one in reached)
    assert any("dv-play" in one for one in reached) and any("radio" in one for one in reached)
    tab.locator("#view-0 .dv-map").focus()
    tab.keyboard.press("Home")  # wherever the mouse has pointed
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowRight")
    assert "row 2, column 2" in tab.locator("#view-0 .dv-said").inner_text()
    tab.keyboard.press("End")
    assert "row 4, column 4" in tab.locator("#view-0 .dv-said").inner_text()
    outline = tab.locator("#view-0 .dv-map").evaluate(
        "e => getComputedStyle(e).outlineStyle + getComputedStyle(e).outlineWidth"
    )
    assert outline == "solid3px"
    tab.locator("#question textarea").focus()
    tab.keyboard.type("And with keys alone?")
    tab.keyboard.press("Shift+Enter")  # a text of two lines takes Enter as a new line
    tab.locator("#chat-0 .dv-user").nth(1).wait_for()


def test_pictures_have_words_for_those_who_do_not_see_them(visit: Any) -> None:
    tab = visit()
    tab.click("#example-0")
    tab.locator("#pictures img").wait_for()
    ask(tab, "What?")
    assert tab.locator("img:not([alt])").count() == 0
    label = tab.locator("#view-0 .dv-map").get_attribute("aria-label")
    assert re.match(r"the image, 4 by 4 patches: \d+ kept as they are, \d+ merged into 3 tokens, \d+ dropped", label)
    staircase = tab.locator("#comparison svg[role=img]").get_attribute("aria-label")
    assert "the model's own budget: 5.7 on average; no compression: 16.0 on average" in staircase
    unnamed = "e => e.filter(x => !(x.innerText.trim() || x.getAttribute('aria-label') || x.title)).length"
    assert tab.locator("button:visible").evaluate_all(unnamed) == 0


CONTRAST = """
elements => elements.filter(e => e.offsetParent && e.innerText && e.innerText.trim()).map(e => {
    const parse = c => { const v = c.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
    let back = [255, 255, 255], chain = [], at = e;
    while (at) { chain.unshift(parse(getComputedStyle(at).backgroundColor)); at = at.parentElement; }
    for (const c of chain) back = back.map((b, i) => b * (1 - c[3]) + c[i] * c[3]);
    const ink = parse(getComputedStyle(e).color);
    const linear = v => v <= 10 ? v / 3294 : ((v / 255 + .055) / 1.055) ** 2.4;
    const light = c => c.slice(0, 3).map(linear).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
    const page = getComputedStyle(document.body).backgroundColor;
    return [(a + .05) / (b + .05), e.className + ': ' + e.innerText.slice(0, 40), page];
})
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_read_in_light_and_in_dark(scheme: str, visit: Any) -> None:
    """Contrast of at least 4.5 (WCAG AA) of every text of ours against what lies behind it."""
    tab = visit(color_scheme=scheme)
    tab.click("#example-0")
    tab.locator("#pictures img").wait_for()
    ask(tab, "What?")
    looked = (
        ".dv-hint, .dv-said, .dv-fits, .dv-text, .dv-who, .dv-table th, .dv-table td, .dv-words span, .dv-words mark"
    )
    found = tab.locator(f"{looked}, .dv-head p, figcaption, .dv-legend li, .dv-layer, .dv-modes label").evaluate_all(
        CONTRAST
    )
    assert len(found) > 40
    assert [one for one in found if one[0] < 4.5] == []
    darkness = sum(map(int, re.findall(r"\d+", found[0][2])[:3]))
    assert darkness > 600 if scheme == "light" else darkness < 150
