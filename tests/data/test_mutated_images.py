"""Damaged files never crash, hang, allocate much, or come out as half a picture."""

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wavevit.data.images import ImageTooLargeError, UnreadableImageError, load_image

Encode = Callable[..., bytes]

KINDS: dict[str, dict[str, Any]] = {
    "JPEG": {},
    "JPEG progressive": {"progressive": True},
    "PNG": {},
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
    "BMP": {},
    "TIFF": {},
    "TIFF deflate": {"compression": "tiff_adobe_deflate"},
    "GIF": {},
    "PPM": {},
}


@pytest.fixture(scope="module")
def originals(picture: Image.Image, encode: Encode) -> dict[str, bytes]:
    return {kind: encode(picture, kind.split()[0], **options) for kind, options in KINDS.items()}


def read(data: bytes) -> np.ndarray | None:
    """The pixels, or None if the file is refused, within a second."""
    start = time.monotonic()
    pixels, message = None, ""
    try:
        pixels = np.asarray(load_image(io.BytesIO(data)))
    except UnreadableImageError as error:
        message = str(error)
    assert "\n" not in message
    assert time.monotonic() - start < 1
    return pixels


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_are_refused_or_complete(originals: dict[str, bytes], kind: str) -> None:
    """What was cut off may be trailing bytes only: a grey-filled picture is never returned."""
    data = originals[kind]
    expected = read(data)
    cuts = np.random.default_rng(0).integers(0, len(data), 40).tolist()
    for cut in [0, 1, 2, 10, 30, len(data) // 2, *cuts, *range(len(data) - 20, len(data))]:
        pixels = read(data[:cut])
        assert pixels is None or np.array_equal(pixels, expected), cut
    assert read(data[: len(data) // 2]) is None


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused(originals: dict[str, bytes], kind: str) -> None:
    rng = np.random.default_rng(1)
    for trial in range(200 // len(KINDS) * 2):
        data = bytearray(originals[kind])
        reach = min(len(data), 100) if trial % 2 else len(data)
        for position in rng.integers(0, reach, int(rng.integers(1, 6))):
            data[position] = int(rng.integers(256)) if trial % 3 else data[position] ^ 0x80
        read(bytes(data))
    for size in (1, 7, 100, 5000):
        assert read(rng.bytes(size)) is None
        read(originals[kind][:12] + rng.bytes(size))
    assert read(bytes(len(originals[kind]))) is None


def huge_headers() -> dict[str, bytes]:
    """Files of a few bytes that promise 50,000 x 50,000 pixels."""
    side = 50_000
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    png += (
        struct.pack(">I", zlib.crc32(b"IHDR" + header)) + struct.pack(">I", 8) + b"IDAT" + bytes(12)
    )
    bmp = b"BM" + struct.pack("<IHHI", 100, 0, 0, 54)
    bmp += struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    gif = b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0) + b","
    gif += struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x08\x02ab\0;"
    tags = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, side), (279, 100)]
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags))
    tiff += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + bytes(4)
    jpeg = b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, side, side, 1) + b"\x01\x11\0"
    jpeg += b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(50) + b"\xff\xd9"
    return {
        "png": png,
        "bmp": bmp,
        "gif": gif,
        "tiff": tiff,
        "jpeg": jpeg,
        "ppm": b"P6 50000 50000 255\n",
    }


@pytest.mark.parametrize("kind", huge_headers())
def test_decompression_bombs_are_refused_before_anything_is_allocated(kind: str) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLargeError, match="over the limit of 178,956,970 pixels"):
            load_image(io.BytesIO(huge_headers()[kind]))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 20 * 1024


def test_an_image_of_10000_x_10000_is_not_refused_for_its_size() -> None:
    """Pillow warns there; warnings are errors in this test run. The file ends after its header."""
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    data += struct.pack(">I", zlib.crc32(b"IHDR" + header)) + struct.pack(">I", 8) + b"IDAT"
    with pytest.raises(UnreadableImageError) as caught:
        load_image(io.BytesIO(data + bytes(12)))
    assert not isinstance(caught.value, ImageTooLargeError)


def test_tiff_with_a_huge_tile_raises_no_warning() -> None:
    """The picture is small, but each of its tiles claims 100 million pixels."""
    tags = [(256, 64), (257, 64), (258, 8), (259, 5), (262, 1), (277, 1), (322, 10_000)]
    tags += [(323, 10_000), (324, 8), (325, 100)]
    data = b"II*\0" + struct.pack("<IH", 8, len(tags))
    data += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + bytes(200)
    with pytest.raises(UnreadableImageError):
        load_image(io.BytesIO(data))
