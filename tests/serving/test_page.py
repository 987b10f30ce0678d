"""The page in a real browser: what people do there, and what they see when something is wrong."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import soundfile
from PIL import Image

from clipsep_jax.serving.examples import read_examples
from clipsep_jax.serving.limits import Limits
from tests.separation.inputs import noise
from tests.serving.conftest import running

# Gradio calls what newer versions of its own dependencies warn of.
pytestmark = [pytest.mark.page, pytest.mark.filterwarnings("default")]

_OPTIONS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required "
    "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
)
SCREEN, PHONE = {"width": 1_000, "height": 800}, {"width": 375, "height": 740}
LIMITS = Limits(upload_megabytes=2)


@pytest.fixture(scope="module")
def address(trained, tmp_path_factory) -> Iterator[str]:
    from clipsep_jax.serving.page import add_page

    folder = tmp_path_factory.mktemp("examples")
    soundfile.write(folder / "market.wav", noise(16_000, level=0.3), 16_000)
    (folder / "examples.csv").write_text("file,query\nmarket.wav,bell\n")
    with_page = partial(add_page, examples=read_examples(folder / "examples.csv"))
    with running(Path(os.environ.get("PAGE_MODEL", trained)), LIMITS, add_page=with_page) as address:
        yield address


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_command_serves_until_it_is_told_to_end_and_leaves_nothing(trained, tmp_path, number, code):
    command = [sys.executable, "-m", "clipsep_jax.cli", "serve", "--model", str(trained), "--port", "0"]
    process = subprocess.Popen(
        command, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        address = process.stdout.readline().split()[1]
        assert httpx.get(f"{address}/health").json()["status"] == "ok"
        assert any(tmp_path.glob("clipsep-serve-*"))
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert not any(tmp_path.glob("clipsep-serve-*"))


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=_OPTIONS.split())
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the page in a browser of its own; whatever it asks of other servers is an error."""
    pages = []

    def opened(**how):
        page = browser.new_context(**how).new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        pages.append((page, asked))
        page.goto(address)
        page.wait_for_selector("#separate")
        return page

    yield opened
    for page, asked in pages:
        strangers = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
        page.context.close()
        assert not strangers


def give(page, path: Path, queries: str) -> None:
    page.locator("input[type=file]").first.set_input_files(path)
    page.get_by_text(path.suffix, exact=False).first.wait_for()
    page.get_by_label("What to pull out").fill(queries)


def separate(page) -> None:
    page.get_by_role("button", name="Separate", exact=True).click()
    page.wait_for_selector("clipsep-player")


def alert(page) -> str:
    page.get_by_role("alert").first.wait_for()
    return page.get_by_role("alert").first.inner_text()


def test_a_recording_goes_in_and_sounds_come_out(open_page, recording, tmp_path):
    page = open_page()
    give(page, recording, "buzz\nhum")
    separate(page)
    assert page.locator(".stem h2").all_inner_texts() == ["buzz", "hum", "what is left"]
    page.locator(".wide img").evaluate("image => image.decode()")
    assert page.locator(".wide img").evaluate("image => image.naturalWidth") > 100
    with page.expect_download() as download:
        page.get_by_role("link", name="Download buzz").click()
    download.value.save_as(tmp_path / "buzz.wav")
    assert soundfile.info(tmp_path / "buzz.wav").frames == 20_000


def test_the_switch_exchanges_what_is_heard_at_the_same_instant(open_page, tmp_path):
    long = tmp_path / "long.wav"
    soundfile.write(long, noise(60 * 16_000, level=0.3), 16_000)
    page = open_page()
    give(page, long, "buzz")
    separate(page)
    player = page.locator("clipsep-player").first
    player.evaluate("player => player.querySelector('audio').play()")
    together = "() => Math.abs(document.querySelector('clipsep-player').drift()) < 0.05"
    playing = "() => document.querySelector('clipsep-player audio').currentTime > 0.5"
    page.wait_for_function(playing)
    page.wait_for_function(together)
    state = "player => [player.sound.muted, player.mixture.muted]"
    assert player.evaluate(state) == [False, True]
    switch = player.get_by_role("button", name="Hear the mixture")
    switch.click()
    assert player.evaluate(state) == [True, False]
    assert switch.get_attribute("aria-pressed") == "true"
    page.wait_for_function(together)
    player.evaluate("player => { player.sound.muted = false; }")  # as the native controls do
    page.wait_for_function("() => document.querySelector('.switch').ariaPressed == 'false'")
    assert player.evaluate(state) == [False, True]
    switch.press("Enter")
    switch.press("Enter")
    assert player.evaluate(state) == [False, True]
    player.locator(".peaks").click(position={"x": 1, "y": 5})
    page.wait_for_function("() => document.querySelector('clipsep-player audio').currentTime < 1")


def test_an_example_is_tried_by_a_click(open_page):
    page = open_page()
    page.get_by_text("market.wav").click()
    page.wait_for_function("() => document.querySelector('textarea').value == 'bell'")
    separate(page)
    assert page.locator(".stem h2").first.inner_text() == "bell"


def test_a_recorded_sound_is_opened_by_us_alone(address, tmp_path):
    """Gradio would hand another format to ffmpeg."""
    sound = tmp_path / "a.flac"
    soundfile.write(sound, noise(20_000, level=0.3), 16_000)
    with httpx.Client(base_url=f"{address}/gradio_api", timeout=60) as client:
        (path,) = client.post("/upload", files={"files": ("a.flac", sound.read_bytes())}).json()
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        doors = httpx.get(f"{address}/config").json()["dependencies"]
        (number,) = (door["id"] for door in doors if len(door["inputs"]) == 6)
        sent = {"fn_index": number, "session_hash": "s", "data": [None, file, "buzz", "", None, None]}
        client.post("/queue/join", json=sent)
        with client.stream("GET", "/queue/data", params={"session_hash": "s"}) as told:
            lines = "".join(line for line in told.iter_lines() if "process_" in line)
    assert "clipsep-player" in lines
    assert not list(Path(path).parent.glob("*.wav"))


def test_a_microphone_records(open_page):
    page = open_page(permissions=["microphone"])
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(1_500)
    page.get_by_role("button", name="Stop", exact=True).first.click()
    page.get_by_label("What to pull out").fill("buzz")
    page.wait_for_timeout(1_000)
    separate(page)
    assert page.locator(".stem h2").first.inner_text() == "buzz"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bad.wav", b"<html>", "bad.wav cannot be read as sound"),
        ("list.mp4", b"#EXTM3U\n/etc/passwd\n", "list.mp4 cannot be read as sound"),
    ],
)
def test_a_bad_file_is_told_in_a_sentence(open_page, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    page = open_page()
    give(page, tmp_path / name, "buzz")
    page.get_by_role("button", name="Separate", exact=True).click()
    assert words in alert(page)


def test_what_is_missing_is_asked_for(open_page, recording):
    page = open_page()
    page.get_by_role("button", name="Separate", exact=True).click()
    assert "recording" in alert(page)
    give(page, recording, " ")
    page.get_by_role("button", name="Separate", exact=True).click()
    page.get_by_text("Say what to pull out, such as", exact=False).wait_for()


def test_a_file_that_is_too_large_is_not_taken(open_page, tmp_path):
    large = tmp_path / "large.wav"
    soundfile.write(large, noise(2_000_000), 16_000)
    page = open_page()
    page.locator("input[type=file]").first.set_input_files(large)
    page.get_by_text(re.compile("too large|maximum|exceeds", re.IGNORECASE)).first.wait_for()


def test_two_users_at_once_get_their_own(open_page, recording, tmp_path):
    other = tmp_path / "other.wav"
    soundfile.write(other, noise(40_000, level=0.3), 16_000)
    pages = [open_page(), open_page()]
    for page, (path, query) in zip(pages, [(recording, "buzz"), (other, "hum")], strict=True):
        give(page, path, query)
    for page in pages:
        page.get_by_role("button", name="Separate", exact=True).click()
    for page, query, seconds in zip(pages, ["buzz", "hum"], ["1.2", "2.5"], strict=True):
        page.wait_for_selector("clipsep-player")
        assert page.locator(".stem h2").first.inner_text() == query
        assert f"Separated {seconds} s" in page.get_by_role("status").first.inner_text()


def test_a_phone_shows_all_of_it(open_page, recording):
    page = open_page(viewport=PHONE, has_touch=True)
    give(page, recording, "buzz")
    separate(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_browser_asks_for_the_token_once(browser, trained, recording):
    from clipsep_jax.serving.page import add_page

    token = "a-token-that-nobody-guesses"
    with running(trained, LIMITS, add_page=add_page, token=token) as address:
        context = browser.new_context(http_credentials={"username": "anyone", "password": token})
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#separate")
        give(page, recording, "buzz")
        separate(page)
        context.close()
        assert httpx.get(address).status_code == 401


@pytest.mark.parametrize(("name", "viewport"), [("page", SCREEN), ("page_on_a_phone", PHONE)])
def test_what_the_manual_shows(open_page, recording, tmp_path, name, viewport):
    """For the manual: PAGE_MODEL=runs/demo/run PAGE_SOUND=runs/demo/audio/2_mixture.wav PAGE_PICTURES=docs/pictures."""
    page = open_page(viewport=viewport)
    give(page, Path(os.environ.get("PAGE_SOUND", recording)), "dog\nclock")
    separate(page)
    picture = Path(os.environ.get("PAGE_PICTURES", tmp_path)) / f"{name}.png"
    page.screenshot(path=picture, full_page=True)
    with Image.open(picture) as shown:
        assert shown.width == viewport["width"]
        assert shown.height > viewport["height"]


def test_it_works_by_the_keyboard_alone(open_page, recording):
    page = open_page()
    give(page, recording, "buzz")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.id") == "separate":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("clipsep-player")


@pytest.mark.parametrize("viewport", [SCREEN, PHONE], ids=["screen", "phone"])
def test_nothing_serious_stands_in_the_way_of_people_who_see_or_hear_differently(open_page, recording, viewport):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(viewport=viewport)
    give(page, recording, "buzz")
    separate(page)
    found = Axe().run(page).response["violations"]
    serious = {
        each["id"]: [node["html"][:200] for node in each["nodes"]]
        for each in found
        if each["impact"] in ("serious", "critical")
    }
    assert not serious


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("queue/join", 400),
        ("run/predict", 400),
        ("queue/join/", 404),
        ("run/predict/", 404),
        ("call/separate", 404),
        ("api/predict", 404),
        ("process_recording", 404),
        ("vibe-edit", 404),
        ("%71ueue/join", 400),
        ("../gradio_api/queue/join", 400),
    ],
)
def test_no_door_of_gradio_takes_an_address_or_a_path(address, path, code):
    for given in ("http://127.0.0.1:1/x.wav", "/etc/passwd", "../../etc/passwd"):
        file = {"path": given, "meta": {"_type": "gradio.FileData"}}
        sent = {"fn_index": 0, "session_hash": "x", "data": [file, None, "buzz", "", None, None]}
        assert httpx.post(f"{address}/gradio_api/{path}", json=sent).status_code == code


@pytest.mark.parametrize(
    "path",
    [
        "proxy=http://127.0.0.1:1/",
        "file=http://127.0.0.1:1/",
        "file=/etc/passwd",
        "file=/%00",
        "file/etc/passwd",
        "info",
        "monitoring",
    ],
)
def test_nothing_of_the_machine_can_be_fetched(address, path):
    assert httpx.get(f"{address}/gradio_api/{path}").status_code == 404
    for closed in ("monitoring", "monitoring/summary"):
        assert httpx.get(f"{address}/{closed}").status_code in (403, 404)
