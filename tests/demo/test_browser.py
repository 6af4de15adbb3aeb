"""The page in a browser: a picture goes in and a result is seen, a bad file gets a message."""

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]
WAIT_MS = 60_000
USERS = 20
PAGES = 4
"""Of the users that are pages of a browser; the others ask over HTTP."""


@pytest.fixture(scope="module")
def server(checkpoints: list[Path], start: Callable[..., Any]) -> Any:
    options = ["--port", "0", "--max-users", "40"]
    return start("-m", "wavevit", "demo", *options, "--checkpoint", *checkpoints)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        launched = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, server: Any) -> Iterator[Any]:
    """The page, open; at the end it must have asked nobody but its server."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(WAIT_MS)
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(server.url)
    yield opened
    context.close()
    strangers = [url for url in asked if not url.startswith((server.url, "data:", "blob:"))]
    assert strangers == []
    assert len(asked) > 5


def send(page: Any, path: Path) -> None:
    page.locator("#picture input[type=file]").first.set_input_files(str(path))


def choose(page: Any, model: str) -> None:
    page.get_by_label("Model").click()
    page.get_by_role("option", name=model).click()


def is_painted(page: Any, place: str) -> None:
    """Waits until there is an image whose pixels have arrived."""
    page.wait_for_function(
        "place => { const i = document.querySelector(place + ' img');"
        " return i && i.complete && i.naturalWidth > 10; }",
        arg=place,
    )


def test_a_picture_gives_classes_objects_and_labels(page: Any, picture_file: Path) -> None:
    send(page, picture_file)
    page.locator(".wv-row").nth(3).wait_for()
    assert page.locator(".wv-row").count() == 4
    names = page.locator(".wv-name").all_inner_texts()
    assert set(names) == {"cat", "<script>alert(1)</script>", 'dog "&" co', "bee"}
    shares = [float(text.rstrip("%")) for text in page.locator(".wv-share").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    choose(page, "pixels")
    page.get_by_text(re.compile("class(es)?, most of it")).wait_for()
    is_painted(page, "#seen")
    choose(page, "objects")
    page.locator("#rows").get_by_text(re.compile("score of at least|Nothing was found")).wait_for()
    is_painted(page, "#seen")


def test_bands_and_attention_are_shown_when_looked_for(page: Any, picture_file: Path) -> None:
    send(page, picture_file)
    page.locator(".wv-row").first.wait_for()
    page.get_by_role("tab", name="Wavelets").click()
    is_painted(page, "#bands")
    page.get_by_role("tab", name="Where it looks").click()
    is_painted(page, "#heat")
    before = page.locator("#heat img").get_attribute("src")
    page.get_by_text("Attention of the class token").click()
    page.wait_for_function(
        "before => document.querySelector('#heat img').src !== before", arg=before
    )


def test_a_bad_file_gives_a_message_and_a_good_one_still_works(
    page: Any, picture_file: Path, tmp_path: Path, bad_files: dict[str, tuple[bytes, str]]
) -> None:
    for name in ("cut.jpg", "huge.png", "html-called.jpg"):
        content, words = bad_files[name]
        path = tmp_path / name
        path.write_bytes(content)
        send(page, path)
        message = page.locator(".toast-body", has_text=words)
        message.first.wait_for()
        message.first.get_by_role("button").first.click()
        page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
        assert page.locator(".wv-row").count() == 0
    send(page, picture_file)
    page.locator(".wv-row").first.wait_for()
    content, words = bad_files["cut.png"]
    path = tmp_path / "cut.png"
    path.write_bytes(content)
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    send(page, path)
    page.locator(".toast-body", has_text=words).first.wait_for()
    page.locator(".wv-empty").wait_for()  # and not what the good one has given
    assert page.locator(".wv-row").count() == 0


def test_a_file_of_another_kind_is_refused_by_the_page(
    page: Any, picture_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no picture")
    send(page, path)
    page.locator(".toast-body").first.wait_for()
    assert page.locator(".wv-row").count() == 0


def test_the_camera_takes_a_picture(page: Any) -> None:
    page.get_by_label("Capture from camera").or_(page.get_by_label("Webcam")).first.click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function(
        "() => { const v = document.querySelector('#picture video');"
        " return v && v.readyState >= 2 && v.videoWidth > 0 && !v.paused; }"
    )
    page.get_by_label(re.compile("capture photo|record", re.IGNORECASE)).first.click()
    page.locator(".wv-row").first.wait_for()


def test_the_page_fits_a_phone(browser: Any, server: Any, picture_file: Path) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(server.url)
    send(page, picture_file)
    page.locator(".wv-row").first.wait_for()
    width = page.evaluate("document.documentElement.scrollWidth")
    context.close()
    assert width <= 360


def test_twenty_users_at_once_some_of_them_in_a_browser(
    browser: Any, server: Any, picture: Image.Image, tmp_path: Path
) -> None:
    files = []
    for number in range(USERS):
        files.append(tmp_path / f"{number}.png")
        picture.rotate(18 * number).save(files[-1])
    contexts = [browser.new_context() for _ in range(PAGES)]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.set_default_timeout(WAIT_MS)
        page.goto(server.url)
    with ThreadPoolExecutor(USERS) as pool:
        others = [pool.submit(ask, server.url, path) for path in files[PAGES:]]
        for page, path in zip(pages, files, strict=False):
            send(page, path)
        for page in pages:
            page.locator(".wv-row").first.wait_for()
        assert [other.result() for other in others] == [True] * (USERS - PAGES)
    for context in contexts:
        context.close()


def ask(url: str, path: Path) -> bool:
    """Whether one user who is no browser gets a result."""
    import httpx

    with httpx.Client(base_url=f"{url}/gradio_api", trust_env=False, timeout=60) as http:
        files = {"files": (path.name, path.read_bytes())}
        file = {"path": http.post("upload", files=files).json()[0]}
        functions = http.get(f"{url}/config").json()["dependencies"]
        look = next(function["id"] for function in functions if function["api_name"] == "look")
        data = [{**file, "meta": {"_type": "gradio.FileData"}}, "classes", 3, 0.3, 0.5]
        session = path.stem
        body = {"fn_index": look, "data": data, "session_hash": session}
        http.post("queue/join", json=body).raise_for_status()
        answers = http.get("queue/data", params={"session_hash": session}).text
    return "wv-row" in answers
