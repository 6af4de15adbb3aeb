"""Small networks of every task, pictures, and a real server."""

import importlib.util
import io
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wavevit.cli.demo import load_lookers
from wavevit.data.shapes import render_scene
from wavevit.demo.looks import Looker


@pytest.fixture(scope="session")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory,
    save_classifier: Callable[..., Path],
    save_detector: Callable[..., Path],
    save_segmenter: Callable[..., Path],
) -> list[Path]:
    """Model files: a classifier, a detector with masks, a segmenter; some names are markup."""
    root = tmp_path_factory.mktemp("models")
    names = ["cat", "<script>alert(1)</script>", 'dog "&" co', "bee"]
    return [
        save_classifier(root / "classes.safetensors", "wavevit_test", names, image_size=(64, 64)),
        save_detector(root / "objects.safetensors"),
        save_segmenter(root / "pixels.safetensors"),
    ]


@pytest.fixture(scope="session")
def lookers(checkpoints: list[Path]) -> Mapping[str, Looker]:
    """The networks by the names "classes", "objects" and "pixels"."""
    return load_lookers(checkpoints, "cpu", "fp32")[0]


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """A wider than high picture of the generated set."""
    pixels = render_scene(0, 3, image_size=96, num_objects=3).image
    return Image.fromarray(np.ascontiguousarray(pixels[:72]))


@pytest.fixture(scope="session")
def picture_file(tmp_path_factory: pytest.TempPathFactory, picture: Image.Image) -> Path:
    """The picture as a PNG file."""
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    picture.save(path)
    return path


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def bad_files(picture: Image.Image) -> dict[str, tuple[bytes, str]]:
    """Name to content and words of the message: what people send that is no fit picture."""
    jpeg = encoded(picture.resize((640, 480)), "JPEG")
    png = encoded(picture.resize((640, 480)), "PNG")
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    html = b"<!doctype html><script>alert(document.cookie)</script>"
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    return {
        "drawing.svg": (svg, "no image"),
        "svg-called.png": (svg, "no image"),
        "page.html": (html, "no image"),
        "html-called.jpg": (html, "no image"),
        "program.eps": (eps, "no image"),
        "empty.png": (b"", "empty"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "head-only.png": (png[:40], "cannot be used"),
        # A bilevel picture of 100 megapixels has 12 kB.
        "huge.png": (encoded(Image.new("1", (10_000, 10_000)), "PNG"), "100 megapixels"),
        "lies.png": (_with_size(png, 30_000, 30_000), "far more than the 50 megapixels"),
    }


def _with_size(png: bytes, width: int, height: int) -> bytes:
    """A PNG whose header, with its checksum, promises another size."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


class Server:
    """A server in a process of its own.

    Attributes:
        url: Without a path.
    """

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self._log = log
        with open(log, "w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, *words],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().split(" ")[0].strip()
        assert self.url.startswith("http://127.0.0.1:"), self.errors()

    def errors(self) -> str:
        """What it has written to stderr."""
        return self._log.read_text()

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it; returns its exit code."""
        self._process.send_signal(number)
        try:
            return self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """`start("-m", "wavevit", ...)`: a server, ended with the last test of the file at the latest.

    In processes of their own, since gradio leaves event loops and sockets open.
    """
    pytest.importorskip("httpx", reason='needs pip install "wavevit[demo]"')
    if importlib.util.find_spec("gradio") is None:
        pytest.skip('needs pip install "wavevit[demo]"')
    started: list[Server] = []

    def run(*words: object) -> Server:
        log = tmp_path_factory.mktemp("log") / "stderr.txt"
        started.append(Server([str(word) for word in words], log))
        return started[-1]

    yield run
    for server in started:
        if server.is_running():
            server.stop()
