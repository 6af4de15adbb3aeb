"""Numbers in mask files of every kind, and the labels they stand for."""

import copy
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wavevit.data.images import UnreadableImageError
from wavevit.data.segmentation.masks import (
    LabelRule,
    MaskKindError,
    UnknownLabelError,
    count_numbers,
    load_labels,
    read_mask,
    read_palette,
)

GREY, PALETTE = 0, 3


def write_png(path: Path, numbers: np.ndarray, bits: int, colour_type: int) -> Path:
    """A PNG of any bit depth, which Pillow itself does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    H, W = numbers.shape
    spread = (numbers[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)
    rows = np.packbits(spread.reshape(H, -1), axis=1)
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", W, H, bits, colour_type, 0, 0, 0)
    palette = b"" if colour_type == GREY else chunk(b"PLTE", bytes(range(3 * 2 ** min(bits, 4))))
    body = chunk(b"IHDR", header) + palette + chunk(b"IDAT", zlib.compress(content))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("bits", "colour_type"),
    [(bits, GREY) for bits in (1, 2, 4, 8, 16)] + [(bits, PALETTE) for bits in (1, 2, 4)],
)
def test_numbers_are_those_of_the_file_at_every_bit_depth(
    tmp_path: Path, bits: int, colour_type: int
) -> None:
    """Decoders spread grey levels of 2 and 4 bits over 8, and show palettes as colours."""
    numbers = np.random.default_rng(bits).integers(0, min(2**bits, 2**9), (5, 7))
    read = read_mask(write_png(tmp_path / "a.png", numbers, bits, colour_type))
    assert read.dtype == (np.uint16 if bits == 16 else np.uint8)
    np.testing.assert_array_equal(read, numbers)


def test_a_palette_is_colours_and_never_numbers(tmp_path: Path) -> None:
    numbers = np.arange(12, dtype=np.uint8).reshape(3, 4) % 5
    picture = Image.fromarray(numbers).convert("P")
    picture.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200, 9, 8, 7, 1, 2, 3])
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), numbers)
    assert read_palette(tmp_path / "a.png")[:3] == [[200, 10, 10], [10, 200, 10], [10, 10, 200]]
    Image.fromarray(numbers).save(tmp_path / "grey.png")
    assert read_palette(tmp_path / "grey.png") == []


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 3)).save(tmp_path / "a.png")
    expected = rf"a\.png.* one channel .* got {mode} colours; write the number of each colour"
    with pytest.raises(MaskKindError, match=expected) as caught:
        read_mask(tmp_path / "a.png")
    assert "\n" not in str(caught.value)
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert str(again) == str(caught.value)
        assert (again.path, again.reason) == (str(tmp_path / "a.png"), caught.value.reason)
    assert str(MaskKindError("out of a worker")) == "out of a worker"


def test_other_files_are_refused(tmp_path: Path) -> None:
    Image.new("L", (4, 3)).save(tmp_path / "a.png", "JPEG")
    with pytest.raises(MaskKindError, match=r"expected a PNG .* got a JPEG file"):
        read_mask(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    for name in ("b.png", "missing.png"):
        with pytest.raises(UnreadableImageError, match=name):
            read_mask(tmp_path / name)


NUMBERS = np.array([[0, 1, 2], [3, 255, 2]], np.uint8)


@pytest.mark.parametrize(
    ("rule", "num_classes", "expected"),
    [
        (LabelRule(), 4, [[0, 1, 2], [3, 255, 2]]),
        (LabelRule(ignore_index=3), 3, [[0, 1, 2], [255, 255, 2]]),
        (LabelRule(ignore_index=0), 4, [[255, 1, 2], [3, 255, 2]]),
        (LabelRule(reduce_zero_label=True), 3, [[255, 0, 1], [2, 255, 1]]),
        (LabelRule(ignore_index=3, reduce_zero_label=True), 2, [[255, 0, 1], [255, 255, 1]]),
        (LabelRule(), 3, None),
        (LabelRule(reduce_zero_label=True), 2, None),
        (LabelRule(ignore_index=2), 3, None),
    ],
)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_labels_by_every_rule(
    rule: LabelRule, num_classes: int, expected: list[list[int]] | None, kind: type
) -> None:
    labels = rule.to_labels(NUMBERS.astype(kind), num_classes)
    unknown = rule.unknown(count_numbers(NUMBERS), num_classes)
    assert (labels is None) == (expected is None) == bool(unknown)
    if labels is not None:
        assert labels.dtype == np.uint8
        assert labels.tolist() == expected


def test_quick_labels_equal_the_definition() -> None:
    """Every number of 8 bits, by every rule: one number at a time."""
    numbers = np.arange(256, dtype=np.uint8)[None]
    for ignore_index in (None, 0, 1, 77, 254, 255):
        for reduce_zero_label in (False, True):
            rule = LabelRule(ignore_index, reduce_zero_label)
            labels = rule.to_labels(numbers, 255)
            assert labels is not None
            for number, label in enumerate(labels[0].tolist()):
                assert label == (255 if rule.is_ignored(number) else number - rule.first)
            for num_classes in (2, 77, 150):
                one_by_one = [
                    rule.to_labels(numbers[:, n : n + 1], num_classes) for n in range(256)
                ]
                refused = {n for n, one in enumerate(one_by_one) if one is None}
                assert refused == set(rule.unknown(dict.fromkeys(range(256), 1), num_classes))


def test_wide_numbers_can_be_ignored_but_are_no_labels(tmp_path: Path) -> None:
    numbers = np.array([[0, 1], [65535, 255]], np.uint16)
    path = write_png(tmp_path / "a.png", numbers, 16, GREY)
    assert load_labels(path, 2, LabelRule(ignore_index=65535)).tolist() == [[0, 1], [255, 255]]
    with pytest.raises(UnknownLabelError, match=r"label 65535 in 1 pixel; the 2 classes are 0"):
        load_labels(path, 2, LabelRule())


def test_a_label_without_a_class_is_told_with_its_pixels_and_a_remedy(tmp_path: Path) -> None:
    numbers = np.zeros((30, 50), np.uint8)
    numbers[:, 2:] = 11
    Image.fromarray(numbers).save(tmp_path / "a.png")
    expected = (
        r"a\.png': label 11 in 1,440 pixels; the 11 classes are 0 to 10; ignore_index=11 ignores "
        "it; reduce_zero_label ignores 0"
    )
    with pytest.raises(UnknownLabelError, match=expected):
        load_labels(tmp_path / "a.png", 11, LabelRule())
    assert load_labels(tmp_path / "a.png", 11, LabelRule(ignore_index=11)).max() == 255
    text = LabelRule(reduce_zero_label=True).unknown_text(dict.fromkeys(range(20, 28), 3), 4)
    assert "24 in 3 pixels and 3 other labels; the 4 classes are 1 to 4" in text
    assert "ignore_index" not in text
    with pytest.raises(ValueError, match=r"ignore_index .* in \[0, 65535\], got -1"):
        LabelRule(ignore_index=-1)
