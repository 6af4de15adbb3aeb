"""Small networks of every task, pictures, and a real server."""

import io
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wavevit.cli.demo import load_lookers
from wavevit.data.shapes import render_scene
from wavevit.demo.guard import Guard
from wavevit.demo.limits import Limits
from wavevit.demo.looks import Looker
from wavevit.demo.server import bind, demo_app, make_server
from wavevit.demo.uploads import UploadFolder


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


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    folder: UploadFolder
    guard: Guard


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractContextManager[Served]]:
    """`serving(lookers, limits)`: a server in a thread, on a free port, ended afterwards."""
    pytest.importorskip("gradio", reason='needs pip install "wavevit[demo]"')

    @contextmanager
    def serve(lookers: Mapping[str, Looker], limits: Limits) -> Iterator[Served]:
        summaries = {name: looker.task for name, looker in lookers.items()}
        examples = [Image.new("RGB", (32, 32), "teal")]
        with (
            bind("127.0.0.1", 0) as listening,
            demo_app(lookers, summaries, examples, limits, "127.0.0.1") as (guard, folder),
        ):
            server = make_server(guard, limits)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            try:
                while not server.started and thread.is_alive():
                    time.sleep(0.02)
                yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", folder, guard)
            finally:
                server.should_exit = True
                thread.join(30)
            assert not thread.is_alive()

    return serve
