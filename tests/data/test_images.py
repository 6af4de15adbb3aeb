"""Every kind of file becomes the picture that a viewer shows."""

import io
import os
import pickle
import struct
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps

from wavevit.data import images
from wavevit.data.images import (
    ImageTooLargeError,
    UnreadableImageError,
    decode_image,
    load_image,
)

Encode = Callable[..., bytes]


def load(data: bytes, **options: Any) -> np.ndarray:
    image = load_image(io.BytesIO(data), **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def tiff(
    pixels: np.ndarray, *, photometric: int = 1, sample_format: int = 1, bits: int | None = None
) -> bytes:
    """A one-strip TIFF of one channel, for the sample types that Pillow reads but cannot write."""
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    height, width = pixels.shape
    tags = [(256, width), (257, height), (258, bits or 8 * pixels.itemsize), (259, 1)]
    tags += [(262, photometric), (273, 0), (277, 1), (278, height), (279, pixels.nbytes)]
    tags += [(339, sample_format)]
    data_start = 8 + 2 + 12 * len(tags) + 4
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    directory = struct.pack(order + "H", len(tags))
    for tag, value in tags:
        value = data_start if tag == 273 else value
        directory += struct.pack(order + "HHII", tag, 4, 1, value)
    return header + directory + struct.pack(order + "I", 0) + pixels.tobytes()


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("PPM", {}),
        ("DIB", {}),
    ],
)
def test_lossless_formats_give_the_same_pixels(
    picture: Image.Image, encode: Encode, image_format: str, options: dict[str, Any]
) -> None:
    data = encode(picture, image_format, **options)
    np.testing.assert_array_equal(load(data), np.asarray(picture))
    assert decode_image(io.BytesIO(data)).format == image_format


def test_jpeg_and_lossy_webp_are_close(picture: Image.Image, encode: Encode) -> None:
    for image_format in ("JPEG", "WEBP"):
        pixels = load(encode(picture, image_format, quality=95)).astype(int)
        assert np.abs(pixels - np.asarray(picture)).mean() < 12  # noise with halved chroma


def test_first_frame_of_animations(picture: Image.Image, encode: Encode) -> None:
    others = [ImageOps.mirror(picture), ImageOps.flip(picture)]
    animated = encode(picture, "WEBP", save_all=True, append_images=others, lossless=True)
    np.testing.assert_array_equal(load(animated), np.asarray(picture))
    pages = encode(picture, "TIFF", save_all=True, append_images=others)
    np.testing.assert_array_equal(load(pages), np.asarray(picture))
    indexed = picture.quantize(16)
    animated = encode(indexed, "GIF", save_all=True, append_images=[i.quantize(16) for i in others])
    np.testing.assert_array_equal(load(animated), np.asarray(indexed.convert("RGB")))


def test_palette_grey_and_one_bit_images(picture: Image.Image, encode: Encode) -> None:
    for image in (picture.quantize(64), picture.convert("L"), picture.convert("1")):
        expected = np.asarray(image.convert("RGB"))
        for image_format in ("PNG", "BMP", "TIFF", "GIF"):
            np.testing.assert_array_equal(load(encode(image, image_format)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(
    picture: Image.Image, encode: Encode, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    tagged = Image.new("RGB", picture.size)
    tagged.paste(picture)
    tagged.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(tagged))
    for image_format in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if image_format == "WEBP" else {}
        data = encode(picture, image_format, exif=exif, **options)
        image = load_image(io.BytesIO(data))
        np.testing.assert_array_equal(np.asarray(image), expected)
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(image)), expected)
    jpeg = encode(picture, "JPEG", exif=exif, quality=100, subsampling=0)
    assert np.abs(load(jpeg).astype(int) - expected).max() < 12


def test_damaged_exif_is_ignored(picture: Image.Image, encode: Encode) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    good = exif.tobytes()
    for damaged in (good[:9], good[:14], good.replace(b"\x12\x01", b"\x12\x01\xff"), b"Exif\0\0xx"):
        data = encode(picture, "JPEG", exif=damaged)
        assert load(data).shape in ((37, 53, 3), (53, 37, 3))


def test_sixteen_bit_grey_is_scaled_not_clipped(encode: Encode) -> None:
    values = np.linspace(0, 65535, 40 * 50).astype(np.uint16).reshape(40, 50)
    expected = np.rint(values / 257).astype(np.uint8)
    files = [
        encode(Image.fromarray(values), "PNG"),
        encode(Image.fromarray(values), "TIFF"),
        encode(Image.fromarray(values), "TIFF", compression="tiff_lzw"),
        tiff(values.astype(">u2")),
        tiff(65535 - values, photometric=0),
        tiff(values.astype("<u4") * 65537),
        tiff((values.astype("<f4") / 65535), sample_format=3),
    ]
    for data in files:
        pixels = load(data)
        np.testing.assert_array_equal(pixels, np.repeat(expected[..., None], 3, -1))


def test_signed_integers_show_negative_values_black() -> None:
    values = np.array([[-32768, -1, 0, 16384, 32767]] * 2, "<i2")
    np.testing.assert_array_equal(load(tiff(values, sample_format=2))[0, :, 0], [0, 0, 0, 128, 255])
    wide = values.astype("<i4") * 65536
    np.testing.assert_array_equal(load(tiff(wide, sample_format=2))[0, :, 0], [0, 0, 0, 128, 255])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0, np.nan], [0, 128, 255, 0]),
        ([0.0, 1.4, 200.0, 255.0], [0, 1, 200, 255]),
        ([-10.0, 0.0, 10.0, np.inf], [0, 128, 255, 255]),
        ([7000.0, 7000.0, 7000.0, -np.inf], [0, 0, 0, 0]),
        ([np.nan, np.nan, np.nan, np.nan], [0, 0, 0, 0]),
    ],
)
def test_float_images_follow_the_stated_rule(values: list[float], expected: list[int]) -> None:
    data = tiff(np.array([values] * 3, "<f4"), sample_format=3)
    np.testing.assert_array_equal(load(data)[0, :, 0], expected)


def test_sixteen_bit_rgb_png() -> None:
    import zlib

    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(load(data).astype(int) - values / 257).max() <= 1  # Pillow keeps the high byte


def test_hidden_colours_do_not_appear(encode: Encode) -> None:
    """Transparent pixels are white whatever colour lies under them; half ones are mixed."""
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[..., 0] = 200  # red everywhere
    rgba[:, 2:4, 3] = 255
    rgba[:, 4:, 3] = 51
    expected = np.full((4, 6, 3), 255)
    expected[:, 2:4] = 200, 0, 0
    expected[:, 4:] = 244, 204, 204
    image = Image.fromarray(rgba)
    files = [encode(image, "PNG"), encode(image, "TIFF")]
    files += [encode(image, "WEBP", lossless=True, exact=True)]
    for data in files:
        assert np.abs(load(data).astype(int) - expected).max() <= 1


def test_grey_alpha_and_transparent_palettes(encode: Encode) -> None:
    grey = Image.merge("LA", [Image.new("L", (4, 3), 80), Image.new("L", (4, 3), 0)])
    assert (load(encode(grey, "PNG")) == 255).all()
    indexed = Image.new("P", (4, 3), 1)
    indexed.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0])
    indexed.putpixel((0, 0), 0)
    for options in ({"transparency": 0}, {"transparency": bytes([0, 255, 255])}):
        pixels = load(encode(indexed, "PNG", **options))
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[1, 1].tolist() == [200, 100, 50]
    pixels = load(encode(indexed, "GIF", transparency=0))
    assert pixels[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "I;16"])
def test_see_through_colour_key(encode: Encode, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((3, 4), 9000, np.uint16))
        key: Any = 9000
    else:
        image = Image.new(mode, (4, 3))
        key = (0, 0, 0) if mode == "RGB" else 0
    assert (load(encode(image, "PNG", transparency=key)) == 255).all()


def cmyk_profile(colour: tuple[int, int, int]) -> bytes:
    """An ICC profile of a press on which every ink mixture prints one Lab colour (8-bit codes)."""
    table = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    lut += struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut += table * 4 + bytes(colour) * 16 + table * 3
    description = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    blocks, offset, table_of_tags = b"", 128 + 4 + 12 * 3, struct.pack(">I", 3)
    for name, block in ((b"desc", description), (b"wtpt", white), (b"A2B0", lut)):
        block += bytes(-len(block) % 4)
        table_of_tags += name + struct.pack(">II", offset + len(blocks), len(block))
        blocks += block
    header = struct.pack(">I4sI4s4s4s", 0, b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061)
    header = header.ljust(128, b"\0")
    size = len(header) + len(table_of_tags) + len(blocks)
    return struct.pack(">I", size) + header[4:] + table_of_tags + blocks


def test_cmyk_jpeg_without_profile(picture: Image.Image, encode: Encode) -> None:
    """Adobe files hold inverted inks; both signs come out as the picture, not as its negative."""
    cmyk = picture.convert("CMYK")
    adobe = encode(cmyk, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in adobe
    expected = np.asarray(cmyk.convert("RGB")).astype(int)
    assert np.abs(load(adobe) - expected).max() < 12
    np.testing.assert_array_equal(load(encode(cmyk, "TIFF")), expected)


def test_cmyk_goes_through_its_profile(picture: Image.Image, encode: Encode) -> None:
    green = (150, 60, 180)  # L 59, a -68, b 52
    profile = cmyk_profile(green)
    assert ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space == "CMYK"
    pixels = load(encode(picture.convert("CMYK"), "JPEG", icc_profile=profile)).astype(int)
    assert np.ptp(pixels.reshape(-1, 3), axis=0).max() <= 1
    assert pixels[0, 0, 1] > pixels[0, 0, 0] + 50
    assert pixels[0, 0, 1] > pixels[0, 0, 2] + 50


def test_broken_or_foreign_profiles_fall_back(picture: Image.Image, encode: Encode) -> None:
    cmyk = picture.convert("CMYK")
    plain = load(encode(cmyk, "JPEG"))
    foreign = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (b"rubbish", cmyk_profile((1, 2, 3))[:200], foreign):
        np.testing.assert_array_equal(load(encode(cmyk, "JPEG", icc_profile=profile)), plain)


def test_lab_and_ycbcr_tiff(encode: Encode) -> None:
    lab = Image.merge("LAB", [Image.new("L", (8, 8), v) for v in (136, 208, 195)])  # a pure red
    red, green, blue = load(encode(lab, "TIFF"))[0, 0]
    assert red > 235
    assert max(green, blue) < 40
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    data = encode(flat.convert("YCbCr"), "TIFF", compression="jpeg")
    assert np.abs(load(data).astype(int) - [200, 100, 50]).max() < 6


def test_min_size_decodes_less_of_a_jpeg_only(encode: Encode) -> None:
    large = Image.new("RGB", (640, 480), (90, 120, 150))
    jpeg, png = encode(large, "JPEG"), encode(large, "PNG")
    assert load(jpeg, min_size=100).shape == (120, 160, 3)
    assert load(jpeg, min_size=121).shape == (240, 320, 3)
    assert load(jpeg, min_size=1000).shape == (480, 640, 3)
    assert load(jpeg).shape == load(png, min_size=10).shape == (480, 640, 3)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        load(jpeg, min_size=0)


def test_content_counts_not_the_name(tmp_path: Path, picture: Image.Image, encode: Encode) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode(picture, "PNG"))
    np.testing.assert_array_equal(np.asarray(load_image(str(path))), np.asarray(picture))


def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    cases = {
        "missing.png": "no such file",
        ".": "it is a folder",
        "empty.png": "zero bytes",
        "text.png": r"no image, or of an unsupported kind \(supported: JPEG",
        "empty.png/x.png": "Not a directory",
    }
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        cases["pipe.png"] = "not a regular file"
    for name, reason in cases.items():
        with pytest.raises(UnreadableImageError, match=reason) as caught:
            load_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_postscript_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(UnreadableImageError, match="unsupported kind"):
        load_image(path)


def test_error_survives_the_way_back_from_a_worker() -> None:
    error = ImageTooLargeError("a.png", "too many pixels")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is ImageTooLargeError
    assert (copy.path, copy.reason, str(copy)) == (error.path, error.reason, str(error))


def test_pixel_limit_is_our_own(
    picture: Image.Image, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(picture, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # Pillow would warn: 1961 pixels
    assert load(data).shape == (37, 53, 3)
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 1960)
    with pytest.raises(ImageTooLargeError, match="53 x 37 pixels, over the limit of 1,960"):
        load(data)


def test_truncated_files_are_refused_even_if_pillow_was_told_otherwise(
    picture: Image.Image, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for image_format in ("JPEG", "PNG"):
        data = encode(picture, image_format)
        with pytest.raises(UnreadableImageError, match=r"(?i)truncated"):
            load(data[: len(data) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_threads_leave_the_warning_filters_alone(picture: Image.Image, encode: Encode) -> None:
    data, filters = encode(picture, "TIFF"), list(warnings.filters)
    threads = [threading.Thread(target=lambda: [load(data) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == filters


def test_the_callers_stream_stays_open(picture: Image.Image, encode: Encode) -> None:
    stream = io.BytesIO(encode(picture, "PNG"))
    first, second = load_image(stream), load_image(stream)
    assert first.tobytes() == second.tobytes()
    assert not stream.closed
