"""Images and masks opened as data sets: classes, samples, batches, and what is refused."""

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from wavevit.cli.main import main
from wavevit.data.loading import find_unreadable
from wavevit.data.samplers import TrainSampler
from wavevit.data.segmentation.dataset import SegmentationDataset
from wavevit.data.segmentation.files import SegmentationFiles, open_segmentation
from wavevit.data.segmentation.loader import (
    SegmentationEvalView,
    SegmentationTrainView,
    segmentation_eval_loader,
    segmentation_train_loader,
    strict_segmentation,
)
from wavevit.data.segmentation.masks import (
    LabelRule,
    MaskError,
    MaskKindError,
    MaskSizeError,
    UnknownLabelError,
)
from wavevit.data.segmentation.transforms import (
    segmentation_eval_transform,
    segmentation_train_transform,
)
from wavevit.data.worker_failures import received

WritePairs = Callable[..., None]

TRAIN = segmentation_train_transform(crop_size=(16, 20), short_edge=24, long_edge=96)
EVAL = segmentation_eval_transform(short_edge=48, long_edge=96)


def dataset(folder: Path, split: str = "train", **options: Any) -> SegmentationDataset:
    return open_segmentation(folder, **options).dataset(split)


def load(folder: Path, num_workers: int, *, start: int = 0, stop: int = 4) -> list[Any]:
    data = dataset(folder)
    sampler = TrainSampler(len(data), 2, seed=3, start=start, stop=stop)
    return list(segmentation_train_loader(data, TRAIN, sampler, num_workers=num_workers))


def test_a_sample_is_an_image_and_its_labels(folder: Path) -> None:
    files = open_segmentation(folder)
    assert files.splits == ["train", "val"]
    data = files.dataset("val")
    assert (len(data), data.class_names) == (3, ["sky", "road", "car", "tree"])
    assert list(data.sample_ids()) == [f"images/val/{i}.png" for i in range(3)]
    assert list(data.mask_ids()) == [f"labels/val/{i}.png" for i in range(3)]
    sample = data.load(1)
    image = np.asarray(Image.open(folder / "images/val/1.png"))
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), image)
    labels = np.asarray(Image.open(folder / "labels/val/1.png"))
    np.testing.assert_array_equal(sample.labels.numpy(), labels)
    assert (sample.image.dtype, sample.labels.dtype) == (torch.uint8, torch.uint8)
    assert sample.size == (24, 30)
    assert "4 classes of classes.txt, ignored: 255" in data.description


def test_a_subset_and_what_is_held_out(folder: Path) -> None:
    data = dataset(folder)
    part = data.subset(np.array([4, 1]))
    assert list(part.sample_ids()) == ["images/train/4.png", "images/train/1.png"]
    assert torch.equal(part.load(0).labels, data.load(4).labels)
    train, val = data.hold_out(fraction=0.34, seed=0)
    assert (len(train), len(val)) == (4, 2)
    assert set(train.sample_ids()) | set(val.sample_ids()) == set(data.sample_ids())
    again = data.hold_out(fraction=0.34, seed=0)[1]
    assert list(again.sample_ids()) == list(val.sample_ids())
    seeds = {tuple(data.hold_out(fraction=0.34, seed=s)[1].sample_ids()) for s in range(9)}
    assert len(seeds) > 1
    with pytest.raises(ValueError, match="expected two or more images to hold some out"):
        data.subset(np.array([2])).hold_out(fraction=0.5, seed=0)


@pytest.mark.parametrize(
    ("options", "names", "words"),
    [
        ({}, ["class_0", "class_1", "class_2", "class_3"], "4 classes by the largest label in 9"),
        ({"num_classes": 6}, [f"class_{i}" for i in range(6)], "6 classes by num_classes"),
        ({"class_names": list("abcd")}, list("abcd"), "4 classes of the model"),
        (
            {"rule": LabelRule(3)},
            ["class_0", "class_1", "class_2"],
            "3 classes by the largest label in 9 masks (a classes.txt would name them), ignored: 3",
        ),
        ({"rule": LabelRule(None, True)}, ["class_0", "class_1", "class_2"], "0 ignored and class"),
    ],
)
def test_classes_without_a_list(
    folder: Path, options: dict[str, Any], names: list[str], words: str
) -> None:
    (folder / "classes.txt").unlink()
    files = open_segmentation(folder, **options)
    assert files.classes.names == names
    assert len(files.classes.palette) == len(names)
    assert words in files.description
    labels = files.dataset("train").load(0).labels
    assert labels[labels != 255].max() < len(names)


def test_classes_that_contradict_each_other(folder: Path) -> None:
    with pytest.raises(ValueError, match="num_classes is 5, but there are 4 classes of"):
        open_segmentation(folder, num_classes=5)
    with pytest.raises(ValueError, match="the class 1 is 'road', but 'boat' for the model"):
        open_segmentation(folder, class_names=["sky", "boat", "car", "tree"])
    same = open_segmentation(folder, class_names=["sky", "road", "car", "tree"], num_classes=4)
    assert same.classes.names == ["sky", "road", "car", "tree"]


def test_colours_of_a_list_go_before_those_of_masks_and_these_before_ours(folder: Path) -> None:
    generated = open_segmentation(folder).classes.palette
    colours = [[10, 20, 30], [40, 50, 60], [70, 80, 90], [11, 12, 200]]
    for path in sorted(folder.rglob("labels/*/*.png")):
        picture = Image.open(path).convert("P")
        picture.putdata(list(Image.open(path).tobytes()))
        picture.putpalette([*np.ravel(colours).tolist(), *[255] * 756])
        picture.save(path)
    files = open_segmentation(folder)
    assert files.classes.palette == colours != generated
    assert dataset(folder).load(0).labels.max() == 255
    # With 0 ignored, the first class has the colour of 1.
    (folder / "classes.txt").write_text("road\ncar\ntree\n")
    assert open_segmentation(folder, rule=LabelRule(None, True)).classes.palette == colours[1:]
    (folder / "classes.txt").write_text("a 1 1 1\nb 2 2 2\nc 3 3 3\nd 4 4 4\n")
    assert open_segmentation(folder).classes.palette == [[i] * 3 for i in range(1, 5)]


def test_what_is_wrong_everywhere_is_refused_on_opening(folder: Path) -> None:
    """With the first error, how many there are, and the command that lists all."""
    (folder / "classes.txt").write_text("sky\nroad\ncar\n")
    expected = (
        r"labels/train/0\.png: label 3 in [\d,]+ pixels; the 3 classes are 0 to 2; ignore_index=3 "
        r".* \(the first of 6 errors; 6 of 6 masks read; `wavevit check-data .* lists all\)"
    )
    with pytest.raises(ValueError, match=expected):
        dataset(folder)
    assert dataset(folder, rule=LabelRule(3)).load(0).labels.unique().tolist() == [0, 1, 2, 255]
    (folder / "labels/train/7.png").touch()
    (folder / "images/train/4.png").unlink()
    with pytest.raises(ValueError, match=r"(4|7)\.png: no image .* \(the first of 2 errors; "):
        dataset(folder)


@pytest.mark.parametrize("fault", ["colours", "size"])
def test_masks_of_another_kind_or_size_are_refused_on_opening(folder: Path, fault: str) -> None:
    path = folder / "labels/train/3.png"
    if fault == "colours":
        Image.open(path).convert("RGB").save(path)
        words = r"labels/train/3\.png: expected a PNG of one channel .* got RGB colours"
    else:
        Image.new("L", (31, 24)).save(path)
        words = r"images/train/3\.png: it has 30 x 24 pixels, its mask labels/.*3\.png has 31 x 24"
    with pytest.raises(ValueError, match=rf"{words}.* \(the only error; 6 of 6 masks read"):
        dataset(folder)


def test_black_and_white_masks_do_not_tell_the_classes(folder: Path) -> None:
    (folder / "classes.txt").unlink()
    for path in folder.rglob("labels/*/*.png"):
        Image.fromarray((np.asarray(Image.open(path)) > 1).astype(np.uint8) * 255).save(path)
    with pytest.raises(ValueError, match=r"more labels in 9 masks, got 1; .* 255 is ignored"):
        open_segmentation(folder)
    for path in folder.rglob("labels/*/*.png"):
        Image.open(path).convert("RGB").save(path)
    with pytest.raises(ValueError, match=r"got 0; '.*labels/train/0\.png': expected a PNG"):
        open_segmentation(folder)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_may_be_of_the_upright_or_the_stored_picture(folder: Path, orientation: int) -> None:
    """Upright where the size allows it, as viewers and annotation tools show it; else as stored."""
    path = folder / "images/train/0.png"
    data = dataset(folder)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif)
    stored = Image.open(path)
    upright = ImageOps.exif_transpose(stored)
    expected = upright if orientation < 5 else stored
    sample = data.load(0)
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), np.asarray(expected))
    labels = Image.open(folder / "labels/train/0.png")
    labels.transpose(Image.Transpose.ROTATE_90).save(folder / "labels/train/0.png")
    if orientation < 5:
        with pytest.raises(MaskSizeError, match="has 24 x 30"):
            data.load(0)
    else:
        shown = data.load(0).image.permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(shown, np.asarray(upright))


def test_batches_are_the_same_for_any_number_of_workers_and_any_start(folder: Path) -> None:
    plain = load(folder, 0)
    for other in (load(folder, 2), plain[:2] + load(folder, 0, start=2)):
        assert len(plain) == len(other) == 4
        for one, two in zip(plain, other, strict=True):
            assert torch.equal(one.indices, two.indices)
            assert torch.equal(one.images, two.images)
            assert torch.equal(one.labels, two.labels)


def test_a_batch_is_what_a_training_step_takes(folder: Path) -> None:
    state = random.getstate()
    batch = load(folder, 0, stop=1)[0]
    assert random.getstate() == state
    assert len(batch) == 2
    assert batch.images.shape == (2, 3, 16, 20)
    assert batch.labels.shape == (2, 16, 20)
    moved = batch.to(torch.device("cpu"))
    assert (moved.images.dtype, moved.labels.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(moved.labels, batch.labels.long())
    assert torch.equal(moved.to(torch.device("cpu")).labels, moved.labels)
    assert set(moved.labels.unique().tolist()) <= {0, 1, 2, 3, 255}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_file_is_replaced_and_listed(folder: Path, num_workers: int) -> None:
    data = dataset(folder)
    (folder / "images/train/1.png").write_bytes(b"\x89PNG\r\n")
    (folder / "labels/train/3.png").write_bytes(b"rubbish")
    sampler = TrainSampler(len(data), 3, seed=3, start=0, stop=4)
    batches = list(segmentation_train_loader(data, TRAIN, sampler, num_workers=num_workers))
    reasons = {key: text for batch in batches for key, text in batch.unreadable.items()}
    assert set(reasons) == {f"images/train/{number}.png" for number in (1, 3)}
    assert "labels/train/3.png" in reasons["images/train/3.png"]
    assert all(len(batch) == 3 for batch in batches)
    assert {int(i) for batch in batches for i in batch.indices} <= {0, 2, 4, 5}
    loader = segmentation_eval_loader(data, EVAL, batch_size=2, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"evaluation does not skip images, .*1\.png"):
        list(strict_segmentation(loader))


def make_wrong(path: Path, fault: type[MaskError]) -> None:
    """Another mask that is sound as a file."""
    if fault is MaskKindError:
        Image.open(path).convert("RGB").save(path)
    else:
        size, label = ((31, 24), 0) if fault is MaskSizeError else ((30, 24), 9)
        Image.new("L", size, label).save(path)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("fault", [MaskKindError, MaskSizeError, UnknownLabelError])
def test_a_wrong_mask_stops_a_run_and_is_never_replaced(
    folder: Path,
    fault: type[MaskError],
    num_workers: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where it was not among those read on opening; with one line and the exit code 2."""
    data = dataset(folder)
    make_wrong(folder / "labels/train/5.png", fault)
    sampler = TrainSampler(len(data), 3, seed=3, start=0, stop=4)
    train = segmentation_train_loader(data, TRAIN, sampler, num_workers=num_workers)
    evaluation = segmentation_eval_loader(data, EVAL, batch_size=2, num_workers=num_workers)
    for batches in (received(train), strict_segmentation(evaluation)):
        monkeypatch.setattr("wavevit.cli.main._dispatch", lambda _, b=batches: len(list(b)))
        assert main([]) == 2
        line = capsys.readouterr().err
        assert line.startswith("wavevit: error: '")
        assert line.count("\n") == 1
        assert "train/5.png': " in line
        assert "`wavevit check-data` lists all" in line
    with pytest.raises(fault):
        find_unreadable(data, num_workers=0)


def test_all_masks_of_a_small_set_are_read_on_opening(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wavevit.data.segmentation.files._PAIRS_READ", 2)
    make_wrong(folder / "labels/train/3.png", UnknownLabelError)
    (folder / "labels/train/2.png").write_bytes(b"damaged")  # which training replaces
    with pytest.raises(ValueError, match=r"3\.png: label 9 in 720 pixels.* 6 of 6 masks read"):
        dataset(folder)
    monkeypatch.setattr("wavevit.data.segmentation.files._READ_WHOLE", 5)
    assert len(dataset(folder)) == 6
    make_wrong(folder / "labels/train/5.png", UnknownLabelError)
    with pytest.raises(ValueError, match=r"5\.png: label 9 .* only error; 2 of 6 masks read"):
        dataset(folder)


def put(folder: Path, name: str, number: int) -> None:
    """One pixel of a mask, which has 16 bits then."""
    numbers = np.array(Image.open(folder / name)).astype(np.uint16)
    numbers[3, 3] = number
    Image.fromarray(numbers).save(folder / name)


def test_labels_that_no_mask_has_are_told_where_masks_tell_the_classes(folder: Path) -> None:
    (folder / "classes.txt").unlink()
    put(folder, "labels/train/4.png", 200)
    files = open_segmentation(folder)
    assert len(files.classes.names) == 201
    words = "labels/train/4.png: it has the largest label, 200, but no mask has 196 of those below"
    assert f"{words} it, such as 4; if it is a mistake, set num_classes or ignore_index=200" in (
        files.description
    )
    assert "largest label," not in open_segmentation(folder, rule=LabelRule(200)).description
    with pytest.raises(ValueError, match=r"4\.png: label 200 in 1 pixel; the 4 classes are 0 to 3"):
        open_segmentation(folder, num_classes=4).dataset("train")
    zero = open_segmentation(folder, rule=LabelRule(7, True)).description
    assert "such as 4; if it is a mistake, set num_classes" in zero
    assert "ignore_index=" not in zero


def test_labels_too_large_for_any_class_are_named_with_their_file(folder: Path) -> None:
    def opened(**options: Any) -> SegmentationFiles:
        return open_segmentation(folder, rule=LabelRule(**options))

    (folder / "classes.txt").unlink()
    put(folder, "labels/val/1.png", 65535)
    words = r"labels/val/1\.png has the label 65535; those of classes are at most 254; "
    with pytest.raises(ValueError, match=rf"{words}ignore_index=65535 ignores it \(16-bit masks"):
        opened()
    with pytest.raises(ValueError, match=rf"{words}write 255 for it"):
        opened(ignore_index=7)
    assert len(opened(ignore_index=65535).classes.names) == 4
    put(folder, "labels/val/2.png", 300)
    with pytest.raises(ValueError, match=rf"{words}2 labels are larger: write numbers of classes"):
        opened()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_gives_every_image_once_with_its_labels_as_stored(
    folder: Path, write_pairs: WritePairs, batch_size: int
) -> None:
    for kind in ("images", "labels"):
        path = folder / kind / "train/2.png"
        Image.open(path).crop((0, 0, 20, 24)).save(path)
    data = dataset(folder)
    shares: list[int] = []
    for rank in range(3):
        loader = segmentation_eval_loader(
            data, EVAL, batch_size=batch_size, num_workers=0, rank=rank, num_processes=3
        )
        for batch in strict_segmentation(loader):
            moved = batch.to(torch.device("cpu"))
            for index, image, labels, size in zip(
                moved.indices.tolist(),
                moved.images,
                moved.labels,
                moved.original_sizes,
                strict=True,
            ):
                shares.append(index)
                sample = data.load(index)
                assert torch.equal(labels, sample.labels)
                assert size == sample.size == ((24, 20) if index == 2 else (24, 30))
                assert image.shape == ((3, 64, 48) if index == 2 else (3, 48, 64))
                assert torch.equal(image, EVAL(sample.image))
    assert sorted(shares) == list(range(6))


def test_data_sets_can_be_sent_to_spawned_workers(folder: Path) -> None:
    one = SegmentationTrainView(dataset(folder), TRAIN)
    two = pickle.loads(pickle.dumps(one))
    assert torch.equal(one[(0, 1)].image, two[(0, 1)].image)
    assert torch.equal(one[(0, 1)].labels, two[(0, 1)].labels)
    pickle.dumps(SegmentationEvalView(dataset(folder), EVAL))


def test_names_that_are_no_utf8_survive(folder: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    for kind in ("images", "labels"):
        (folder / kind / "val/0.png").rename(folder / kind / "val" / name)
    data = dataset(folder, "val")
    index = list(data.sample_ids()).index(f"images/val/{name}")
    assert data.load(index).size == (24, 30)
