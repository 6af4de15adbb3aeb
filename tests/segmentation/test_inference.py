"""Labels of pictures of any size: as a whole, through windows, in several views."""

import itertools
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavevit.data.resize import SIZE_RULES, resize_image
from wavevit.data.segmentation.transforms import normalise
from wavevit.models.picture_input import input_size
from wavevit.segmentation import logit_maps, test_time
from wavevit.segmentation.card import SegmenterCard
from wavevit.segmentation.factory import create_segmenter
from wavevit.segmentation.inference import SegmentationPredictor
from wavevit.segmentation.logit_maps import (
    MirroredLogits,
    WholeLogits,
    labels_from_logits,
    labels_of,
    parts,
)
from wavevit.segmentation.sliding_window import SlidingLogits, SlidingWindow, window_starts
from wavevit.segmentation.test_time import TestTimeAugmentation

K = 5


class Pointwise(nn.Module):
    """Each pixel's logits from its own colour; notes what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, K, 1).double()
        self.shown: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        assert min(images.shape[2:]) >= 32
        self.shown.append(tuple(images.shape))
        return self.convolution(images.double())


class Blurred(nn.Module):
    """Logits that depend on 9 x 9 pixels around, with zeros outside of the picture."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, K, 5, padding=2)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def card_of(**values: Any) -> SegmenterCard:
    names = [f"class {number}" for number in range(K)]
    sizes = {"short_edge": 48, "long_edge": 96, "size_rule": "multiple_of_16", **values}
    return SegmenterCard(
        "upernet",
        "wavevit_test",
        class_names=names,
        palette=[[number, 0, 0] for number in range(K)],
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        **sizes,
    )


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth picture: noise of a few cells, enlarged."""
    rng = np.random.default_rng(seed)
    cells = torch.from_numpy(rng.random((1, 3, height // 16 + 2, width // 16 + 2)))
    large = F.interpolate(cells, (height, width), mode="bicubic")[0].clamp(0, 1)
    return (large * 255).round().to(torch.uint8)


def predictor(network: nn.Module | None = None, **options: Any) -> SegmentationPredictor:
    card = options.pop("card", card_of())
    return SegmentationPredictor(network or Pointwise(), card, **options)


def normalised(image: Tensor) -> Tensor:
    return normalise(image, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def naive_slide(image: Tensor, run: Callable[[Tensor], Tensor], window: int, stride: int) -> Tensor:
    """Sums and counts over the whole picture, divided at the end; as the official code does."""
    _, H, W = image.shape
    total, counts = torch.zeros(1), torch.zeros(H, W)
    rows = max(H - window + stride - 1, 0) // stride + 1
    columns = max(W - window + stride - 1, 0) // stride + 1
    for i, j in itertools.product(range(rows), range(columns)):
        bottom, right = min(i * stride + window, H), min(j * stride + window, W)
        top, left = max(bottom - window, 0), max(right - window, 0)
        logits = run(image[None, :, top:bottom, left:right])[0]
        if total.ndim == 1:
            total = logits.new_zeros(len(logits), H, W)
        total[:, top:bottom, left:right] += logits
        counts[top:bottom, left:right] += 1
    return total / counts


def all_logits(logits: Any, size: tuple[int, int]) -> Tensor:
    """What `parts` gives, put together."""
    whole = torch.full((logits.num_classes, *size), torch.nan, dtype=torch.float64)
    for part, (block,) in parts([logits], size):
        whole[:, part.rows, part.columns] = block
    return whole


@pytest.mark.parametrize("rule", SIZE_RULES)
def test_sizes_are_those_of_the_data_pipeline(rule: str) -> None:
    rng = np.random.default_rng(0)
    sizes = [tuple(size) for size in rng.integers(1, 5000, (300, 2)).tolist()]
    for short, long in ((512, 2048), (800, 1333), (48, 96)):
        for size in [*sizes, (1, 2000), (2000, 1), (640, 640)]:
            assert input_size(size, short, long, rule) == SIZE_RULES[rule](size, short, long)


# ---- enlarging


@pytest.mark.parametrize(
    ("size", "original"),
    [((16, 24), (61, 83)), ((40, 31), (17, 31)), ((12, 12), (12, 37)), ((1, 1), (5, 3))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_are_enlarged_as_torch_does(
    size: tuple[int, int], original: tuple[int, int], dtype: torch.dtype
) -> None:
    logits = torch.randn(K, *size, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits[None], original, mode="bilinear", align_corners=False)[0]
    found = all_logits(WholeLogits(logits), original)
    # torch rounds positions to the dtype of the logits.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=tolerance)
    labels = labels_from_logits(logits, original).labels
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), found.argmax(dim=0))


@pytest.mark.parametrize("original", [(211, 307), (64, 50), (90, 64)])
def test_stripes_give_what_one_piece_gives_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, original: tuple[int, int]
) -> None:
    logits = WholeLogits(torch.randn(K, 90, 64, generator=torch.Generator().manual_seed(0)))
    whole = all_logits(logits, original)
    for num_rows in (1, 2, 7, 50):
        monkeypatch.setattr(logit_maps, "_STRIPE_BYTES", 4 * K * original[1] * num_rows)
        assert len(list(parts([logits], original))) == -(-original[0] // num_rows)
        assert torch.equal(all_logits(logits, original), whole)


def test_half_precision_logits_are_enlarged_in_single() -> None:
    logits = torch.randn(K, 9, 9, generator=torch.Generator().manual_seed(0)).half()
    half, single = (
        labels_from_logits(x, (50, 50), with_confidence=True) for x in (logits, logits.float())
    )
    assert torch.equal(half.labels, single.labels)
    assert half.confidence is not None
    assert torch.equal(half.confidence, single.confidence)


# ---- windows


def test_the_last_window_is_moved_back_inside() -> None:
    assert window_starts(1024, 512, 341) == [0, 341, 512]
    assert window_starts(128, 64, 42) == [0, 42, 64]
    assert window_starts(130, 64, 32) == [0, 32, 64, 66]
    assert window_starts(64, 64, 10) == window_starts(20, 64, 10) == [0]
    assert window_starts(65, 64, 64) == [0, 1]


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [((90, 131), 48, 32), ((97, 61), 32, 32), ((50, 33), 33, 5), ((40, 150), 64, 64)],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_bands_and_stripes_give_the_naive_average_to_the_bit(
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    window: int,
    stride: int,
    batch_size: int,
) -> None:
    """Whatever of it is held at a time, and in however narrow bands."""
    torch.manual_seed(0)
    image = torch.randn(3, *size, dtype=torch.float64)
    weights = torch.randn(K, 3, dtype=torch.float64)

    def run(images: Tensor) -> Tensor:
        # Not the same at the border and inside of a window; of each image by itself to the bit.
        values = sum(weights[:, c, None, None] * images[:, c, None] for c in range(3))
        return values * torch.linspace(0.5, 2, images.shape[3], dtype=torch.float64)

    expected = naive_slide(image, run, window, stride)

    def slide() -> SlidingLogits:
        return SlidingLogits(image, run, K, window=window, stride=stride, batch_size=batch_size)

    assert torch.equal(all_logits(slide(), size), expected)
    for num_rows, held in ((1, 1), (13, 40 * window), (1000, 1), (13, 10**6)):
        monkeypatch.setattr(logit_maps, "_STRIPE_BYTES", 4 * K * size[1] * num_rows)
        monkeypatch.setattr(logit_maps, "HELD_BYTES", 4 * K * held)
        monkeypatch.setattr(logit_maps, "_MIN_BAND", 7)
        assert torch.equal(all_logits(slide(), size), expected)
    monkeypatch.undo()
    for other in ((size[0] * 2 + 1, size[1] * 3), (size[0] // 2, size[1] // 3 + 1)):
        whole = all_logits(WholeLogits(expected), other)
        for held in (1, 10**6):
            monkeypatch.setattr(logit_maps, "_STRIPE_BYTES", 4 * K * other[1] * 3)
            monkeypatch.setattr(logit_maps, "HELD_BYTES", 4 * K * held)
            monkeypatch.setattr(logit_maps, "_MIN_BAND", 7)
            assert torch.equal(all_logits(slide(), other), whole)
            # The mirror image of the mirrored picture.
            mirrored = SlidingLogits(image.flip(-1), run, K, window=window, stride=stride)
            torch.testing.assert_close(
                all_logits(MirroredLogits(mirrored), other),
                all_logits(
                    WholeLogits(naive_slide(image.flip(-1), run, window, stride).flip(-1)), other
                ),
                rtol=0,
                atol=1e-12,
            )
        monkeypatch.undo()


def test_windows_give_the_official_logits(recording: Callable[[str], Any]) -> None:
    """Windows of 64, 42 apart, as recorded."""
    official = recording("upernet_s_seed0")
    segmenter = create_segmenter("upernet", backbone="wavevit_s", num_classes=150)
    segmenter.load_state_dict(official.official_weights())
    segmenter.eval()
    size = tuple(official.images.shape[2:])

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return segmenter(images)

    slides = [
        SlidingLogits(image, run, 150, window=64, stride=42, batch_size=3)
        for image in official.images
    ]
    logits = torch.stack([all_logits(slide, size) for slide in slides])
    official.assert_close("eval.slide.logits", logits, atol=2e-4)
    assert torch.equal(logits.argmax(dim=1).int(), official.array("eval.slide.argmax"))


def test_windows_without_overlap_of_a_pointwise_network_are_the_whole() -> None:
    image = picture(128, 160)
    network = Pointwise()
    through = predictor(network, sliding=SlidingWindow(32, 32))([image])[0]
    assert network.shown == [(1, 3, 32, 32)] * 20
    whole = network(normalised(image)[None])[0].argmax(dim=0)
    assert torch.equal(through.labels.long(), whole)


@pytest.mark.parametrize("taper", [False, True])
def test_seams_are_invisible(taper: bool) -> None:
    """Of a picture of 1024 pixels, more than 99 % of the labels are those of the whole."""
    image, network = picture(1024, 384), Blurred()
    sliding = SlidingWindow(256, 171, taper=taper)
    through = predictor(network, sliding=sliding, batch_size=2)([image])[0]
    with torch.inference_mode():
        whole = network(normalised(image)[None])[0].argmax(dim=0)
    assert whole.unique().numel() >= 3
    share = float((through.labels == whole).float().mean())
    assert share > (0.998 if taper else 0.99)


def test_tapered_windows_fade_into_each_other() -> None:
    """From one window's constant to the next one's, in equal steps over the overlap."""
    numbers = itertools.count()

    def run(images: Tensor) -> Tensor:
        return torch.full((1, 1, *images.shape[2:]), float(next(numbers)), dtype=torch.float64)

    slide = SlidingLogits(torch.zeros(3, 40, 150), run, 1, window=64, stride=48, taper=True)
    row = all_logits(slide, (40, 150))[0, 20]
    assert slide.lefts == [0, 48, 86]
    steps = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    torch.testing.assert_close(row[48:64], steps, rtol=0, atol=1e-12)
    assert torch.equal(row[:48], torch.zeros(48, dtype=torch.float64))
    assert torch.equal(row[64:86], torch.ones(22, dtype=torch.float64))
    assert (row.diff() >= 0).all()
    assert (row[112:] == 2).all()


def test_windows_that_are_not_needed_twice_run_once() -> None:
    network = Pointwise()
    predictor(network, sliding=SlidingWindow(64, 48), batch_size=4)([picture(150, 300)])
    assert sum(shape[0] for shape in network.shown) == 3 * 6
    assert {shape[0] for shape in network.shown} == {4, 2}


def test_logits_of_a_window_are_gone_when_the_next_one_is_looked_at() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def run(images: Tensor) -> Tensor:
        assert not any(logits() is not None for logits in alive)
        logits = images[:, :1].float().expand(-1, K, -1, -1).clone()
        alive.append(weakref.ref(logits))
        return logits

    slide = SlidingLogits(torch.zeros(3, 200, 300, dtype=torch.uint8), run, K, window=64, stride=42)
    labels_of(slide, (150, 100))
    assert len(alive) == len(slide.tops) * len(slide.lefts)


def test_a_band_is_as_wide_as_the_budget_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    network = Pointwise()
    image = torch.zeros(3, 100, 4000, dtype=torch.float64)
    slide = SlidingLogits(image, network, K, window=64, stride=42)
    monkeypatch.setattr(logit_maps, "HELD_BYTES", 4 * K * 64 * 1000)
    for part, _ in parts([slide], (100, 4000)):
        widths.append(part.columns.stop - part.columns.start)
    assert set(widths) == {1000}
    count = sum(shape[0] for shape in network.shown)
    assert 2 * 95 < count <= 2 * (95 + 3 * 2)  # at each inner border, those over it once more


# ---- predictor


def test_a_picture_seen_as_a_whole_is_the_official_evaluation() -> None:
    """Resized by the rule without padding, logits resized to the original size, argmax."""
    image, network = picture(123, 217), Blurred()
    found = predictor(network, with_confidence=True)([image])[0]
    size = SIZE_RULES["multiple_of_16"]((123, 217), 48, 96)
    with torch.inference_mode():
        logits = network(normalised(resize_image(image, size))[None])
    wanted = F.interpolate(logits, (123, 217), mode="bilinear", align_corners=False)[0].softmax(0)
    assert found.labels.shape == (123, 217)
    assert (found.labels == wanted.argmax(dim=0)).float().mean() > 0.9999
    assert found.confidence is not None
    torch.testing.assert_close(found.confidence, wanted.amax(dim=0), rtol=0, atol=1e-5)


def test_a_batch_of_mixed_sizes_is_labelled_in_order() -> None:
    sizes = [(60, 81), (60, 81), (96, 64), (30, 30), (60, 81)]
    images = [picture(*size, seed=number) for number, size in enumerate(sizes)]
    network = Pointwise()
    look = predictor(network, batch_size=2)
    found = look(images)
    assert [tuple(each.labels.shape) for each in found] == sizes
    assert [shape[0] for shape in network.shown] == [2, 1, 1, 1]
    for image, each in zip(images, found, strict=True):
        assert torch.equal(look([image])[0].labels, each.labels)
        assert each.confidence is None
        assert each.is_finite


@pytest.mark.parametrize("size", [(20, 100), (100, 20), (7, 5), (1, 64)])
@pytest.mark.parametrize("sliding", [None, SlidingWindow(48, 32), SlidingWindow(48, resize=True)])
def test_small_pictures_and_thin_strips(
    size: tuple[int, int], sliding: SlidingWindow | None
) -> None:
    image = picture(*size)
    card = card_of(short_edge=16, long_edge=64)
    found = predictor(card=card, sliding=sliding)([image])[0]
    assert found.labels.shape == size
    if sliding is not None and not sliding.resize:
        whole = Pointwise()(F.pad(normalised(image), (0, 32, 0, 32))[None])[0]
        assert torch.equal(found.labels, whole.argmax(dim=0)[: size[0], : size[1]])


def test_windows_may_lie_on_the_resized_picture() -> None:
    image, network = picture(200, 300), Pointwise()
    look = predictor(network, sliding=SlidingWindow(32, 24, resize=True))
    found = look([image])[0]
    assert set(network.shown) == {(1, 3, 32, 32)}
    assert torch.equal(found.labels, predictor(network)([image])[0].labels)


def test_pixels_stay_bytes_and_are_left_as_they_are() -> None:
    image = picture(50, 90)
    look = predictor(sliding=SlidingWindow(32))
    prepared = look.prepare(image)
    assert prepared.views[0] is image
    assert predictor().prepare(image).views[0].dtype == torch.uint8
    as_float = image.float() / 255
    before = as_float.clone()
    assert torch.equal(look([as_float])[0].labels, look([image])[0].labels)
    assert torch.equal(as_float, before)


@pytest.mark.parametrize("sliding", [None, SlidingWindow(32)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_picture_that_gives_nan_says_so_and_the_others_are_labelled(
    sliding: SlidingWindow | None, precision: Any
) -> None:
    images = [picture(60, 81, seed=number).float() / 255 for number in range(3)]
    images[1][0, 40, 70] = torch.nan
    network = Blurred()
    look = predictor(network, sliding=sliding, precision=precision, batch_size=3)
    found = look(images)
    assert [each.is_finite for each in found] == [True, False, True]
    labels = look(images[:1])[0].labels
    assert (labels == found[0].labels).float().mean() > 0.99


# ---- test-time augmentation


def mean_probabilities(network: nn.Module, image: Tensor, ratios: Sequence[float]) -> Tensor:
    """The average of the softmax of all views, each at the picture's size."""
    size = image.shape[1], image.shape[2]
    total = torch.zeros(K, *size)
    for ratio in ratios:
        seen = resize_image(
            image, SIZE_RULES["multiple_of_16"](size, int(48 * ratio), int(96 * ratio))
        )
        for flip in (False, True):
            view = normalised(seen).flip(-1) if flip else normalised(seen)
            with torch.inference_mode():
                logits = network(view[None])
            logits = logits.flip(-1) if flip else logits
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0]
            total += logits.softmax(dim=0) / (2 * len(ratios))
    return total


@pytest.mark.parametrize("is_large", [False, True])
def test_views_are_averaged_as_probabilities(
    monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    image, network, ratios = picture(101, 150), Blurred(), (0.75, 1.0, 1.5)
    if is_large:
        monkeypatch.setattr(test_time, "HELD_BYTES", 100)
    look = predictor(network, augmentation=TestTimeAugmentation(ratios), with_confidence=True)
    found = look([image])[0]
    wanted = mean_probabilities(network, image, ratios)
    assert (found.labels == wanted.argmax(dim=0)).float().mean() > 0.999
    assert found.confidence is not None
    torch.testing.assert_close(found.confidence, wanted.amax(dim=0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sliding", [None, SlidingWindow(48, 32), SlidingWindow(40, resize=True)])
def test_side_by_side_or_one_after_the_other_is_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, sliding: SlidingWindow | None
) -> None:
    image = picture(61, 90)
    look = predictor(
        Blurred(), sliding=sliding, augmentation=TestTimeAugmentation(), with_confidence=True
    )
    one_by_one = look([image])[0]
    monkeypatch.setattr(test_time, "HELD_BYTES", 100)
    side_by_side = look([image])[0]
    assert torch.equal(one_by_one.labels, side_by_side.labels)
    assert torch.equal(one_by_one.confidence, side_by_side.confidence)  # type: ignore[arg-type]


def test_one_plain_view_is_no_augmentation() -> None:
    image, network = picture(101, 150), Blurred()
    plain = predictor(network, with_confidence=True)([image])[0]
    augmentation = TestTimeAugmentation((1.0,), flip=False)
    one = predictor(network, augmentation=augmentation, with_confidence=True)([image])[0]
    assert torch.equal(plain.labels, one.labels)
    torch.testing.assert_close(plain.confidence, one.confidence)


def test_a_mirror_image_gets_mirrored_labels() -> None:
    image = picture(90, 128)
    look = predictor(Blurred(), augmentation=TestTimeAugmentation((1.0, 1.5)))
    plain, mirrored = (look([each])[0].labels for each in (image, image.flip(-1)))
    assert (plain == mirrored.flip(-1)).float().mean() > 0.999


# ---- mistakes


def test_mistakes_are_named(tmp_path: Path) -> None:
    look = predictor()
    with pytest.raises(ValueError, match=r"a picture \(3, H, W\), got \(1, 8, 8\)"):
        look([torch.zeros(1, 8, 8)])
    with pytest.raises(ValueError, match=r"uint8, or float in \[0, 1\], got torch.int64"):
        look([picture(8, 8).long()])
    with pytest.raises(ValueError, match="a batch of at least 1, got 0"):
        predictor(batch_size=0)
    with pytest.raises(ValueError, match="at least 32 pixels, got 16"):
        SlidingWindow(16)
    with pytest.raises(ValueError, match="without gaps; got 65 for windows of 64"):
        SlidingWindow(64, 65)
    with pytest.raises(ValueError, match=r"each in \[0.1, 10\], got \[\]"):
        TestTimeAugmentation(())
    with pytest.raises(ValueError, match=r"got \[0.01\]"):
        TestTimeAugmentation((0.01,))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        SegmentationPredictor.load(tmp_path / "no.safetensors")
    unknown = predictor(card=card_of(size_rule="golden"))
    with pytest.raises(ValueError, match="size rule 'golden', which is not known"):
        unknown([picture(8, 8)])
