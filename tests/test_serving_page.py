"""The web page in headless Chromium, against a real server with a tiny model. Pictures of it are kept in build/page."""

from __future__ import annotations

import os
import re
import shutil
from importlib.resources import files
from pathlib import Path

import httpx2
import pytest
import served
from playwright.sync_api import Page, expect, sync_playwright

from memory3 import Document
from memory3.serving.data_folder import StorageLimits
from memory3.serving.routes.page import FILES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PICTURES = Path(os.environ.get("MEMORY3_PICTURES") or Path(__file__).parents[1] / "build" / "page")
expect.set_options(timeout=60_000)  # where many tests run beside one another, a reader of files takes seconds to start
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
BRIDGE = (
    "🙂 A walk along the river 🙂\n\nThe bridge over the river was built in 1874 by the engineer of the county. It has three "
    f"arches of red sandstone. The lamp on its east pier burned oil until 1911. {HOSTILE} The ferry is older than the bridge: "
    "it is named in a deed of 1402, and again in the tax rolls of the county, which tell what a cow paid to be taken across."
)
QUESTION = "Who built the bridge over the river, and when?"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    documents = [Document("guide/bridge.md", BRIDGE, "guide/bridge.md")]
    with served.server(tmp_path_factory.mktemp("page"), banks={"docs": documents}, files=StorageLimits()) as running:
        yield running


@pytest.fixture
def state(running):
    return running.state


@pytest.fixture
def address(running):
    return running.address


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def visit(browser, address, **options) -> Page:
    """The page in a browser of its own, which fails the test where a script fails."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}, **options).new_page()
    page.set_default_timeout(60_000)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("dialog", lambda dialog: page.faults.append(dialog.message))
    page.goto(address)
    return page


@pytest.fixture
def page(browser, address):
    page = visit(browser, address)
    expect(page.locator("#model")).to_be_enabled()
    page.select_option("#model", label="docs")
    yield page
    assert not page.faults
    assert page.title() == "memory3"
    page.context.close()


def keep(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png")


def ask(page: Page, question: str = QUESTION, mode: str = "memory", tokens: int = 24):
    """Ask, and wait for the end. The last turn."""
    page.locator(f'input[name="mode"][value="{mode}"]').check()
    page.fill("#length", str(tokens))
    page.fill("#question", question)
    page.press("#question", "Enter")
    turn = page.locator(".turn").last
    expect(page.locator("#send")).to_be_visible()
    expect(turn.locator(".answer .figures")).to_have_count(3 if mode == "all" else 1)
    return turn


def figure(answer, name: str) -> str:
    return answer.locator(f'[data-figure="{name}"] .figure-value').inner_text()


def number(text: str) -> int:
    return int(re.sub(r"\D", "", text))


# ---- what is sent ------------------------------------------------------------------------------------------------------


def test_only_its_own_files_are_sent_and_nothing_in_them_runs_but_scripts_of_the_server(address):
    with httpx2.Client(base_url=address) as http:
        index = http.get("/")
        assert index.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(part.strip().split(" ", 1) for part in index.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert index.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=|https?:", index.text)
        for name, kind in FILES.items():
            sent = http.get(f"/page/{name}")
            assert (sent.status_code, sent.headers["content-type"]) == (200, kind)
            assert sent.headers["content-security-policy"] == index.headers["content-security-policy"]
            again = http.get(f"/page/{name}", headers={"If-None-Match": sent.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        for name in ("../app.py", "%2e%2e/app.py", "..%2fapp.py", "nothing.js", "%00", "/etc/passwd", "", "."):
            assert http.get(f"/page/{name}").status_code == 404, name


def test_every_file_of_the_page_is_sent_and_loaded():
    folder = files("memory3.serving") / "page"
    assert {file.name for file in folder.iterdir()} == set(FILES)
    scripts = "".join((folder / name).read_text() for name in FILES if name.endswith(".js"))
    for name in set(FILES) - {"index.html"}:
        assert name in scripts + (folder / "index.html").read_text()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|localStorage|document\.cookie", scripts
    )


def test_a_passage_is_given_with_the_text_around_it(state, address):
    (bank,) = (one.bank for one in state.banks if one.name == "docs")
    count = len(bank)
    assert count > 6
    with httpx2.Client(base_url=address) as http:

        def passage(number, around, status=200):
            query = {"bank": "docs", "id": f"guide/bridge.md#{number}", "around": around}
            answer = http.get("/v1/passages", params=query)
            assert answer.status_code == status, answer.text
            return answer.json()

        for place in range(count):
            for around in (0, 1, 64):
                found = passage(place, around)
                part = found["around"]
                assert BRIDGE[found["start"] : found["end"]] == found["text"]
                assert BRIDGE[part["start"] : part["start"] + len(part["text"])] == part["text"]
                assert part["start"] <= found["start"]
                assert found["end"] <= part["start"] + len(part["text"])
                assert part["is_start"] == (part["start"] == 0) == (place <= around)
                assert part["is_end"] == (part["start"] + len(part["text"]) == len(BRIDGE)) == (place + around >= count - 1)
        assert passage(2, 1)["around"]["text"] == "".join(passage(n, 0)["text"] for n in (1, 2, 3))
        for wrong in (count, -1, "1e3", "٣", ""):
            passage(wrong, 0, 404)
        passage(0, 65, 400)
        for wrong in ("'#0", "guide/bridge.md' OR 1=1 --#0", "\x00#0", "#0", "guide/bridge.md", "🙂#0"):
            assert http.get("/v1/passages", params={"bank": "docs", "id": wrong, "around": 3}).status_code == 404, wrong
        assert http.get("/v1/passages", params={"bank": "other", "id": "guide/bridge.md#0"}).status_code == 404


# ---- what it does ------------------------------------------------------------------------------------------------------


@needs_browser
def test_upload_ask_watch_and_open_the_passage(page, state, tmp_path):
    name = "<img src=x onerror=alert(1)>.md"
    (tmp_path / name).write_text(BRIDGE)
    (tmp_path / "table.bin").write_bytes(bytes(range(256)) * 40)
    page.set_input_files("#files", [tmp_path / name, tmp_path / "table.bin"])
    expect(page.locator(".upload.is-done .file-name")).to_have_text(name)
    expect(page.locator(".upload.has-failed .file-name")).to_have_text("table.bin")
    expect(page.locator(".upload.has-failed .upload-state")).to_contain_text("binary")
    expect(page.locator("#kept .file-name")).to_have_text([name])  # and soon nothing of the one that failed
    expect(page.locator("#model option:checked")).to_have_text("documents")  # what was just uploaded is asked next

    page.fill("#length", "160")
    page.fill("#question", QUESTION)
    page.press("#question", "Enter")
    answer, seen = page.locator(".answer"), []
    while answer.locator(".text").get_attribute("aria-busy"):
        seen.append(answer.locator(".text").inner_text())
    expect(answer.locator(".figures")).to_be_visible()
    growing = sorted({len(text) for text in seen if text.strip()})
    assert len(growing) > 2, "the answer came at once"
    assert number(figure(answer, "bytes")) > 0
    assert number(figure(answer, "answer")) > 0
    assert answer.locator(".text").inner_text().strip()

    chip = answer.locator("button.chip").first
    chip.click()
    expect(page.locator("#passage")).to_be_visible()
    expect(page.locator("#passage-title")).to_have_text(name)
    shown = page.locator(".passage-text")
    expect(shown).to_be_visible()
    while page.locator("#passage button.small").count():
        page.locator("#passage button.small").first.click()
        expect(page.locator("#passage button.small")).to_have_count(0)
    marked = page.locator(".passage-text mark").text_content()
    assert len(marked) > 10
    assert marked in BRIDGE
    assert shown.text_content() == BRIDGE
    before = page.evaluate("document.querySelector('.passage-text').firstChild.textContent")
    assert BRIDGE[len(before) :].startswith(marked)
    ids = [one for one in state.banks if one.name.startswith("vs_")]
    (bank,) = (one.bank for one in ids)
    references = bank.references([f"{entry.id}#{n}" for entry in bank.documents() for n in range(entry.references)])
    assert (len(before), marked) in {(one.start, one.text) for one in references}
    assert page.locator("mark").bounding_box()["y"] < 800  # it was brought into sight
    assert page.locator("img").count() == 1  # our own
    keep(page, "passage")

    page.locator(".kept-file button").click()
    expect(page.locator("#kept .file-name")).to_have_count(1)  # it asks first
    page.locator(".kept-file button").click()
    expect(page.locator("#kept .file-name")).to_have_count(0)
    assert not list(bank.documents())


@needs_browser
def test_three_modes_side_by_side(page):
    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json) if request.url.endswith("completions") else None)
    turn = ask(page, mode="all")
    assert [one["memory3"]["mode"] for one in asked] == ["memory", "text", "none"]
    memory, text, none = (turn.locator(f'[data-mode="{mode}"]') for mode in ("memory", "text", "none"))
    boxes = [one.bounding_box() for one in (memory, text, none)]
    assert len({box["y"] for box in boxes}) == 1
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] < boxes[1]["x"] + boxes[1]["width"] <= boxes[2]["x"]
    for answer in (memory, text, none):
        assert figure(answer, "first").endswith("s")
        assert figure(answer, "total").endswith("s")
        assert number(figure(answer, "answer")) > 0
    assert number(figure(text, "prompt")) > number(figure(memory, "prompt")) == number(figure(none, "prompt"))
    assert number(figure(memory, "bytes")) > 0
    assert figure(none, "bytes") == "0 B"
    assert memory.locator("button.chip").count() > 0
    assert text.locator("button.chip").count() > 0
    assert none.locator("button.chip").count() == 0
    lengths = [
        one.locator('[data-figure="prompt"] .figure-bar').evaluate("bar => Number(bar.style.getPropertyValue('--part'))")
        for one in (memory, text, none)
    ]
    assert lengths[1] == 1
    assert lengths[0] == lengths[2] == pytest.approx(number(figure(memory, "prompt")) / number(figure(text, "prompt")))
    keep(page, "side-by-side")


@needs_browser
def test_a_conversation_goes_on_and_is_forgotten(page):
    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json) if request.url.endswith("completions") else None)
    first = ask(page, "Who built it?")
    said = first.locator(".stretch-text, .text > span:not(.stretch)").all_text_contents()
    ask(page, "And when?")
    assert [one["role"] for one in asked[1]["messages"]] == ["user", "assistant", "user"]
    assert asked[1]["messages"][0]["content"] == "Who built it?"
    assert "".join(asked[1]["messages"][1]["content"].split()) == "".join("".join(said).split())
    assert "memory3" in asked[1]
    page.click("#clear")
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    ask(page, "Who?")
    assert asked[2]["messages"] == [{"role": "user", "content": "Who?"}]


@needs_browser
def test_each_mode_keeps_its_own_conversation(page):
    """Else closed book would go on from answers that were read from memories."""
    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json) if request.url.endswith("completions") else None)
    ask(page, "Who built it?")
    ask(page, "And when?", mode="none")
    ask(page, "Where?", mode="all")
    questions = {
        one["memory3"]["mode"]: [each["content"] for each in one["messages"] if each["role"] == "user"] for one in asked
    }
    assert [one["content"] for one in asked[1]["messages"]] == ["And when?"]
    assert questions == {"memory": ["Who built it?", "Where?"], "text": ["Where?"], "none": ["And when?", "Where?"]}


@needs_browser
def test_bytes_are_counted_by_thousands(page):
    told = page.evaluate("import('/page/dom.js').then(({ bytes }) => [999, 48000, 999_499, 999_500, 2_500_000].map(bytes))")
    assert told == ["999 B", "48 KB", "999 KB", "1.0 MB", "2.5 MB"]


@needs_browser
def test_stop_ends_the_answer_on_the_server_too(page, state):
    for stop in (lambda: page.click("#stop"), lambda: page.keyboard.press("Escape")):
        page.click("#clear")
        page.fill("#length", "400")
        page.fill("#question", QUESTION)
        page.press("#question", "Enter")
        answer = page.locator(".answer").last
        expect(answer.locator(".text")).not_to_be_empty()
        assert state.engine.state.running == 1
        stop()
        expect(answer.locator(".note")).to_have_text("You stopped it.")
        expect(page.locator("#send")).to_be_visible()
        for _ in range(100):
            if not state.engine.state.running:
                break
            page.wait_for_timeout(50)
        assert not state.engine.state.running
        assert answer.locator(".text").inner_text().strip()  # what came stays


@needs_browser
def test_what_is_probably_not_in_the_bank_is_said(page):
    """The tiny server's embedder was fitted to nothing, so it cannot tell: what it sends is changed on the way."""
    told = []

    def tell(route):
        sent = route.fetch()
        told.append(sent.text().count('"found": null') or sent.text().count('"found":null'))
        route.fulfill(response=sent, body=re.sub(r'"found": ?null', '"found": false', sent.text()))

    page.route("**/v1/chat/completions", tell)
    answer = ask(page).locator(".answer")
    expect(answer.locator(".note")).to_contain_text("Probably not found in the bank")
    assert told == [1]
    page.unroute("**/v1/chat/completions")
    expect(ask(page).locator(".answer .note")).not_to_contain_text("Probably")


@needs_browser
def test_what_fails_is_said(page):
    page.context.set_offline(True)
    page.fill("#question", "Who?")
    page.press("#question", "Enter")
    expect(page.locator(".answer.has-failed .note")).to_have_text("The server cannot be reached.")
    page.context.set_offline(False)
    page.evaluate("document.querySelector('#length').value = '100000'")
    page.fill("#question", "word " * 30_000)
    page.press("#question", "Enter")
    expect(page.locator(".answer.has-failed .note").last).to_contain_text("tokens")
    assert page.locator("#send").is_visible()


@needs_browser
def test_a_key_is_asked_for_and_kept_in_this_tab_alone(browser, tmp_path):
    key = "sk-0123456789abcdef"
    with served.server(tmp_path, banks={}, keys=[key]) as running:
        page = visit(browser, running.address)
        expect(page.locator("#key")).to_be_visible()
        page.fill("#key-value", "sk-wrong-wrong-wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-why")).to_contain_text("does not know this key")
        expect(page.locator("#notice")).to_be_visible()
        page.fill("#key-value", key)
        page.keyboard.press("Enter")
        expect(page.locator("#model option:checked")).to_have_text("No bank (tiny)")
        expect(page.locator("#notice")).to_be_hidden()
        expect(page.locator("#documents")).to_be_hidden()  # this server keeps no documents
        for mode in ("memory", "text", "all"):
            expect(page.locator(f'input[name="mode"][value="{mode}"]')).to_be_disabled()
        page.fill("#question", "Who?")
        page.press("#question", "Enter")
        expect(page.locator(".figures")).to_be_visible()
        page.reload()
        expect(page.locator("#model option:checked")).to_have_text("No bank (tiny)")
        assert page.evaluate("[localStorage.length, document.cookie, Object.values(sessionStorage)]") == [0, "", [key]]
        other = page.context.new_page()
        other.goto(running.address)
        expect(other.locator("#key")).to_be_visible()
        page.click("#key-button")
        page.click("#key-forget")
        expect(page.locator("#key-why")).to_contain_text("asks for a key")
        assert page.evaluate("sessionStorage.length") == 0
        assert not page.faults
        page.context.close()


# ---- for everybody -----------------------------------------------------------------------------------------------------

#: What can be used now, by id or text; and of the focus: what it is on, and whether its ring shows.
USABLE = """() => [...document.querySelectorAll('a[href], button, input, select, textarea, [tabindex="0"]')]
  .filter((one) => one.checkVisibility({visibilityProperty: true}) && !one.disabled && (one.type !== 'radio' || one.checked))
  .map((one) => one.id || one.getAttribute('aria-label') || one.textContent.trim() || one.value)"""
FOCUSED = """() => {
  const one = document.activeElement;
  const rings = [one, one.nextElementSibling, one.closest('.ask-line')].filter(Boolean);
  const shows = rings.some((ring) => getComputedStyle(ring).outlineStyle === 'solid'
    && parseFloat(getComputedStyle(ring).outlineWidth) >= 2);
  const name = one.id || one.getAttribute('aria-label') || one.textContent.trim() || one.value;
  return one === document.body ? ['', true] : [name, shows];
}"""


@needs_browser
def test_everything_by_keyboard(page):
    page.focus("#question")
    page.keyboard.type("Who built")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("the bridge?")
    assert page.input_value("#question") == "Who built\nthe bridge?"
    page.keyboard.press("Shift+Tab")  # over Length
    page.keyboard.press("Control+a")
    page.keyboard.type("24")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator('input[name="mode"]:checked').get_attribute("value") == "none"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .figures")).to_be_visible()
    assert page.input_value("#question") == ""

    usable = page.evaluate(USABLE)
    assert len(usable) == len(page.evaluate(USABLE)) > 12
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(3 * len(usable)):
        page.keyboard.press("Tab")
        name, shows = page.evaluate(FOCUSED)
        if name in reached:
            break
        if not name:  # between the last and the first, where a browser's own buttons would be
            continue
        assert shows, f"no ring shows that {name!r} has the focus"
        reached.append(name)
    assert set(usable) == set(reached)

    chip = page.locator("button.chip").first
    chip.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#passage-title")).to_be_focused()
    expect(page.locator(".passage-text mark")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator("#passage-close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#passage")).to_be_hidden()
    expect(chip).to_be_focused()


@needs_browser
def test_answers_are_told_to_screen_readers_in_whole_sentences(page):
    turn = ask(page)
    log = page.locator("#said")
    assert log.get_attribute("aria-live") == "polite"
    told = log.locator("p").all_text_contents()
    assert told[-1].startswith("Answer complete, ")
    said = turn.locator(".stretch-text, .text > span:not(.stretch)").all_text_contents()
    assert "".join("".join(told[:-1]).split()) == "".join("".join(said).split())
    chips = page.locator("button.chip")
    assert all(re.fullmatch(r"Source \d+: guide/bridge.md", chip.get_attribute("aria-label")) for chip in chips.all())
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, select, textarea')].filter((one) => one.checkVisibility())
        .filter((one) => !(one.getAttribute('aria-label') || one.textContent.trim() || one.labels?.length)).length"""
    )
    assert unnamed == 0


#: Texts whose contrast to what lies behind them is less than WCAG's AA asks for.
PALE = """() => {
  const channels = (colour) => {
    const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (rgb) => rgb.slice(0, 3).map((c) => linear(c / 255))
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const found = channels(getComputedStyle(at).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const pale = [];
  let seen = 0;
  while (texts.nextNode()) {
    const one = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !one.checkVisibility()) continue;
    if (one.closest('.unseen, .skip, noscript, :disabled')) continue;
    seen += 1;
    const [a, b] = [light(channels(getComputedStyle(one).color)), light(behind(one))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    const name = `${one.className || one.tagName}: ${texts.currentNode.data.slice(0, 40)}`;
    if (contrast < 4.5) pale.push(`${contrast.toFixed(2)} ${name}`);
  }
  return [seen, pale];
}"""


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_in_both_schemes(page, scheme, tmp_path):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    seen, pale = page.evaluate(PALE)
    assert (seen > 10, pale) == (True, [])
    (tmp_path / "bad.bin").write_bytes(bytes(range(256)))
    page.set_input_files("#files", [tmp_path / "bad.bin"])
    expect(page.locator(".upload.has-failed")).to_be_visible()
    page.select_option("#model", label="docs")
    turn = ask(page, mode="all")
    turn.locator("button.chip").first.click()
    expect(page.locator(".passage-text")).to_be_visible()
    seen, pale = page.evaluate(PALE)
    assert (seen > 40, pale) == (True, [])
    assert (
        page.evaluate("getComputedStyle(document.body).backgroundColor")
        == {
            "light": "rgb(246, 247, 247)",
            "dark": "rgb(16, 21, 20)",
        }[scheme]
    )
    keep(page, scheme)


@needs_browser
def test_nothing_moves_where_that_is_not_wanted(page):
    page.fill("#length", "400")
    moving = "document.getAnimations({subtree: true}).filter((one) => one.playState === 'running').length"
    for motion, moves in (("no-preference", True), ("reduce", False)):
        page.emulate_media(reduced_motion=motion)
        page.click("#clear")
        page.fill("#question", QUESTION)
        page.press("#question", "Enter")
        expect(page.locator(".answer.is-running .text")).not_to_be_empty()
        assert bool(page.evaluate(moving)) == moves
        page.click("#stop")
        expect(page.locator("#send")).to_be_visible()


#: What sticks out of the window to the right, or cannot be scrolled to.
STICKS_OUT = """() => [...document.querySelectorAll('body *')]
  .filter((one) => one.checkVisibility() && !one.closest('.unseen'))
  .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5 || one.getBoundingClientRect().left < -0.5)
  .map((one) => one.id || one.className || one.tagName)"""


@needs_browser
@pytest.mark.parametrize("width", [360, 768, 1199, 1200])
def test_fits_a_phone_and_what_is_between(page, width, tmp_path):
    page.set_viewport_size({"width": width, "height": 740})

    def fits(what):
        assert page.evaluate("document.documentElement.scrollWidth") <= width, what
        assert page.evaluate(STICKS_OUT) == [], what

    fits("at first")
    long = "a" * 200 + ".md"
    (tmp_path / long).write_text(BRIDGE)
    if width < 960:
        page.click("#documents-button")
    page.set_input_files("#files", [tmp_path / long])
    expect(page.locator(".upload.is-done").last).to_be_visible()
    fits("documents")
    turn = ask(page, "x" * 300)
    assert page.locator("#documents").is_visible() == (width >= 960)
    fits("an answer")
    keep(page, f"answer-{width}")
    turn.locator(".source").first.click()
    expect(page.locator(".passage-text")).to_be_visible()
    fits("a passage")
    keep(page, f"passage-{width}")
    box = page.locator("#passage").bounding_box()
    assert box["x"] + box["width"] == width
    assert page.evaluate("document.querySelector('#passage').matches(':modal')") == (width < 1200)  # above, or beside
    beside = turn.bounding_box()["x"] + turn.bounding_box()["width"] <= box["x"]
    assert beside == (width == 1200)
    page.keyboard.press("Escape")
    expect(page.locator("#passage")).to_be_hidden()
    ask(page, mode="all")
    fits("side by side")
    keep(page, f"side-by-side-{width}")
    small = page.evaluate(
        """[...document.querySelectorAll('button, select, input, textarea')].filter((one) => one.checkVisibility())
        .map((one) => [one.id || one.className, one.getBoundingClientRect()])
        .filter(([name, box]) => name !== 'unseen' && box.height > 1 && (box.height < 21 || box.width < 21))
        .map(([name]) => name)"""
    )
    assert small == []


# ---- texts of strangers ------------------------------------------------------------------------------------------------


@needs_browser
def test_hostile_texts_stay_texts(page):
    turn = ask(page, HOSTILE)
    assert turn.locator(".question").text_content() == HOSTILE
    turn.locator("button.chip").first.click()
    shown = page.locator(".passage-text")
    expect(shown).to_contain_text(HOSTILE)
    # An answer of a model that was made to say it, drawn by the page's own code.
    drawn = page.evaluate(
        """async (hostile) => {
          const { CitedText } = await import(new URL('page/cited.js', document.baseURI));
          const into = document.createElement('div');
          document.body.append(into);
          const text = new CitedText(into, () => {});
          text.add(`**${hostile}** \\`${hostile}\\` ${hostile}`, [{start: 0, end: 20, number: 1, title: hostile}]);
          return [into.querySelectorAll('img, script').length, into.textContent];
        }""",
        HOSTILE,
    )
    assert drawn[0] == 0
    assert drawn[1].count(HOSTILE[30:]) == 3
    assert page.locator("img").count() == 1
    assert page.locator("script").count() == 1


@needs_browser
def test_stretches_are_counted_in_characters_as_the_server_counts_them(page):
    """Emoji are two units of JavaScript's strings and one character of Python's."""
    text = "🙂🙂 One. Two 🙂. Three."
    cited = [(6 - 3, 7, 1), (8, 14, 2), (8, 14, 1), (15, 21, 3), (0, 0, 4), (-1, -1, 5)]
    drawn = page.evaluate(
        """async ([text, cited]) => {
          const { CitedText } = await import(new URL('page/cited.js', document.baseURI));
          const into = document.createElement('div');
          const all = new CitedText(into, () => {});
          const nodes = [];
          for (const character of text) {
            all.add(character, []);
            nodes.push(into.lastChild);
          }
          all.add('', cited.map(([start, end, number]) => ({start, end, number, title: `t${number}`})));
          const [first, chips] = [into.querySelector('.stretch'), into.querySelectorAll('.chip')];
          all.add(' More.', []);
          return [
            [...into.querySelectorAll('.stretch')].map((one) => [one.querySelector('.stretch-text').textContent,
              [...one.querySelectorAll('.chip')].map((chip) => chip.textContent)]),
            into.textContent.replaceAll('\\u2060', ''),
            first === into.querySelector('.stretch'),
          ];
        }""",
        [text, cited],
    )
    assert drawn[0] == [["One.", ["1"]], ["Two 🙂.", ["2", "1"]], ["Three.", ["3"]]]
    assert drawn[1] == "🙂🙂 One.1 Two 🙂.21 Three.3 More."
    assert drawn[2]  # what was shown is left alone
