"""How long users of `wavevit demo` wait: the first one in a browser, then many at once.

    python benchmarks/demo/latency.py --csv benchmarks/results/demo_latency.csv

The server is the command itself, in a process of its own, with fresh weights. The first result is
that of the first picture that the server is sent, by a page in headless Chromium: from the file
being chosen to its classes being visible. Then users who are no browsers send a picture each, all
at once; every one of them opens a connection, uploads, waits for its turn and gets the classes.
"""

import argparse
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from wavevit.data.shapes import render_scene
from wavevit.models.card import ModelCard, save_model
from wavevit.profiling.timing import append_rows, environment

_ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def photo(number: int) -> bytes:
    """A JPEG of 3 megapixels, as cameras of phones send them, of the generated set."""
    pixels = render_scene(number, number, image_size=1536, num_objects=6).image
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((2048, 1536)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def first_result(url: str, picture: Path) -> tuple[float, float]:
    """Seconds until a page can be used, and from choosing a file to its classes."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=list(_ARGUMENTS))
        page = browser.new_page()
        start = time.perf_counter()
        page.goto(url)
        chooser = page.locator("#picture input[type=file]").first
        chooser.wait_for(state="attached")
        opened = time.perf_counter()
        chooser.set_input_files(str(picture))
        page.locator(".wv-row").first.wait_for()
        seen = time.perf_counter()
        browser.close()
    return opened - start, seen - opened


def ask(url: str, content: bytes, model: str, user: int) -> float | None:
    """Seconds until one user has a result; None if there was none."""
    start = time.perf_counter()
    with httpx.Client(base_url=f"{url}/gradio_api", trust_env=False, timeout=120) as http:
        path = http.post("upload", files={"files": ("photo.jpg", content)}).json()[0]
        functions = http.get(f"{url}/config").json()["dependencies"]
        look = next(function["id"] for function in functions if function["api_name"] == "look")
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, model, 5, 0.3, 0.55]
        body = {"fn_index": look, "data": data, "session_hash": f"user-{user}"}
        if http.post("queue/join", json=body).status_code != 200:
            return None
        answers = http.get("queue/data", params={"session_hash": f"user-{user}"}).text
    return time.perf_counter() - start if "wv-row" in answers else None


def measure(model: str, users: int, folder: Path) -> dict[str, Any]:
    """One row of results."""
    card = ModelCard(model, class_names=[f"class {number}" for number in range(1000)])
    checkpoint = folder / f"{model}.safetensors"
    save_model(checkpoint, card.build().state_dict(), card)
    words = ["-m", "wavevit", "demo", "--checkpoint", str(checkpoint), "--port", "0"]
    start = time.perf_counter()
    server = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split(" ")[0].strip()
        started = time.perf_counter() - start
        pictures = [photo(number) for number in range(users + 1)]
        (folder / "photo.jpg").write_bytes(pictures[-1])
        opened, seen = first_result(url, folder / "photo.jpg")
        with ThreadPoolExecutor(users) as pool:
            start = time.perf_counter()
            waits = list(pool.map(lambda n: ask(url, pictures[n], model, n), range(users)))
            together = time.perf_counter() - start
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    served = [wait for wait in waits if wait is not None]
    return {
        "start_s": round(started, 2),
        "page_s": round(opened, 2),
        "first_result_s": round(seen, 2),
        "users": users,
        "failed": users - len(served),
        "median_s": round(statistics.median(served), 2),
        "slowest_s": round(max(served), 2),
        "results_per_s": round(len(served) / together, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="wavevit_s", help="timm name of the classifier")
    parser.add_argument("--users", type=int, default=20, help="at once")
    parser.add_argument("--csv", type=Path, help="file that the row is added to")
    options = parser.parse_args()
    import gradio

    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.model, options.users, Path(folder))
    row = {
        **environment("cpu"),
        "gradio": gradio.__version__,
        "load_average": round(os.getloadavg()[0], 1),
        "model": options.model,
        **found,
        "command": " ".join(["python", *sys.argv]),
    }
    print(json.dumps(row, indent=1))
    if options.csv is not None:
        append_rows(options.csv, [row])


if __name__ == "__main__":
    main()
