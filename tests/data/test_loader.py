"""Batches: seeded per sample, with unreadable files replaced and listed."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from wavevit.data.classification import open_classification
from wavevit.data.loader import TrainView, eval_loader, seeded, strict, train_loader
from wavevit.data.samplers import TrainSampler
from wavevit.data.transforms import eval_transform, train_transform

NORMAL: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
EVAL = eval_transform((32, 32), crop_pct=0.96, interpolation="bicubic", **NORMAL)


def augmentation(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "crop_scale": (0.2, 1.0),
        "crop_ratio": (0.75, 1.33),
        "hflip": 0.5,
        "vflip": 0.5,
        "rand_augment": "rand-m9-mstd0.5-inc1",
        "color_jitter": None,
        "random_erasing": 0.5,
        "interpolation": "random",
    }
    return train_transform((32, 32), **{**settings, **changes}, **NORMAL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{number}.png")
    return tmp_path


def load(folder: Path, num_workers: int, *, start: int = 0, stop: int = 6) -> list[Any]:
    data = open_classification(folder, val_fraction=0).train
    sampler = TrainSampler(len(data), 4, seed=3, start=start, stop=stop)
    return list(train_loader(data, augmentation(), sampler, num_workers=num_workers))


def test_batches_are_the_same_for_any_number_of_workers_and_any_start(folder: Path) -> None:
    plain = load(folder, 0)
    for other in (load(folder, 2), plain[:3] + load(folder, 0, start=3)):
        for one, two in zip(plain, other, strict=True):
            assert torch.equal(one.images, two.images)
            assert torch.equal(one.labels, two.labels)
            assert torch.equal(one.indices, two.indices)


def test_loading_in_the_main_process_leaves_the_global_generators_alone(folder: Path) -> None:
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index,union-attr]
    load(folder, 0, stop=2)
    load(folder, 1, stop=2)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_seed_gives_the_same_draws_inside_and_restores_the_state_outside() -> None:
    draws = []
    for _ in range(2):
        with seeded(2**63 + 5):
            draws.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert draws[0] == draws[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_file_is_replaced_and_listed(folder: Path, num_workers: int) -> None:
    (folder / "train/a/2.png").write_bytes(b"not a picture")
    (folder / "train/b/4.png").write_bytes((folder / "train/b/4.png").read_bytes()[:100])
    batches = load(folder, num_workers)
    listed = {name for batch in batches for name in batch.unreadable}
    assert {Path(name).as_posix().split("train/")[-1] for name in listed} == {"a/2.png", "b/4.png"}
    assert all(len(batch.images) == 4 for batch in batches)


def test_a_folder_of_broken_files_ends_with_a_message_not_a_hang(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    data = open_classification(folder, val_fraction=0).train
    with pytest.raises(ValueError, match=r"100 images in a row could not be read"):
        TrainView(data, augmentation())[(0, 1)]


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_evaluation_gives_every_sample_once_and_in_order(folder: Path, batch_size: int) -> None:
    data = open_classification(folder, val_fraction=0).train
    batches = list(strict(eval_loader(data, EVAL, batch_size=batch_size, num_workers=0)))
    assert torch.cat([b.indices for b in batches]).tolist() == list(range(12))
    shares = [
        torch.cat(
            [
                b.indices
                for b in strict(
                    eval_loader(data, EVAL, batch_size=5, num_workers=0, rank=rank, num_processes=3)
                )
            ]
        ).tolist()
        for rank in range(3)
    ]
    assert sorted(index for share in shares for index in share) == list(range(12))


def test_evaluation_refuses_to_skip(folder: Path) -> None:
    (folder / "train/a/2.png").write_bytes(b"")
    data = open_classification(folder, val_fraction=0).train
    with pytest.raises(ValueError, match=r"evaluation does not skip images, .*2\.png"):
        list(strict(eval_loader(data, EVAL, batch_size=4, num_workers=0)))


def test_posterize_to_zero_bits_is_black_as_it_always_was() -> None:
    """Pillow 13 refuses 0 bits, which the official policy draws: such an image is black."""
    transform = augmentation(rand_augment="rand-m10-n1-inc1")
    for operation in transform.transforms[3].ops:
        name = getattr(operation, "name", "")
        if name.startswith("Posterize"):
            image = operation.aug_fn(Image.new("RGB", (4, 4), "white"), 0)
            assert image.getextrema() == ((0, 0),) * 3
            break
    else:
        pytest.fail("the policy has no posterize")


def test_a_training_image_becomes_the_tensor_that_torchvision_makes_of_it() -> None:
    """To the bit, for every level in every channel: one step does the work of two of theirs."""
    levels = np.arange(32 * 32 * 3).astype(np.uint8).reshape(32, 32, 3)
    image = Image.fromarray(levels)
    last = augmentation(rand_augment=None).transforms[-2]
    steps = [transforms.ToTensor(), transforms.Normalize(**NORMAL)]
    assert torch.equal(last(image), transforms.Compose(steps)(image))


def test_a_very_long_image_is_prepared_without_enlarging_its_ends() -> None:
    strip = Image.new("RGB", (20_000, 1), (10, 20, 30))
    assert EVAL(strip).shape == (3, 32, 32)
    assert torch.equal(EVAL(strip), EVAL(Image.new("RGB", (16, 1), (10, 20, 30))))
