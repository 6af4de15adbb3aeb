"""`wavevit predict` streams: results before the listing ends, bounded look-ahead, clean ends."""

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wavevit.cli.image_paths import iter_paths
from wavevit.cli.inference import Classifier
from wavevit.cli.predict import predictions
from wavevit.cli.read_ahead import ReadAhead, batches
from wavevit.models.card import ModelCard


def make_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.jpg", "sub/c.png"):
        make_image(tmp_path / "images" / name)
    return tmp_path / "images"


@pytest.fixture
def classifier() -> Classifier:
    """The mean colour as logits."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(model, ModelCard("x", image_size=(8, 8)), 3, torch.device("cpu"), "fp32")


@pytest.fixture
def checkpoint(save_classifier: Callable[..., Path], tmp_path: Path) -> Path:
    return save_classifier(tmp_path / "m.safetensors", "test_resnet", ["ant", "bee"])


def test_the_first_result_comes_before_the_listing_ends(
    classifier: Classifier, folder: Path
) -> None:
    first_seen = threading.Event()

    def paths() -> Iterator[str]:
        yield str(folder / "a.png")
        assert first_seen.wait(30), "nothing came while the list went on"
        yield str(folder / "b.jpg")

    found = predictions(classifier, paths(), topk=1, batch_size=64, num_workers=1)
    assert [record.path for record in next(found)] == [str(folder / "a.png")]
    first_seen.set()
    assert [record.path for record in next(found)] == [str(folder / "b.jpg")]
    assert list(found) == []


def test_no_more_than_two_batches_are_ahead_of_the_model(
    classifier: Classifier, folder: Path
) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield str(folder / "a.png")

    found = predictions(classifier, endless(), topk=1, batch_size=4, num_workers=2)
    for finished in range(1, 4):
        assert len(next(found)) == 4
        time.sleep(0.2)
        assert taken <= 4 * finished + 8
    found.close()


def test_read_ahead_keeps_the_order_when_work_ends_in_another() -> None:
    def work(item: int) -> int:
        time.sleep(0.02 if item % 4 == 0 else 0)
        return item * item

    with ReadAhead(range(40), work, num_threads=4, depth=8) as source:
        assert [x for group in batches(source, 7, max_wait_s=9) for x in group] == [
            i * i for i in range(40)
        ]


def test_read_ahead_raises_what_the_source_raises_in_its_place() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise PermissionError("no entry")

    with ReadAhead(source(), lambda item: item, num_threads=1, depth=4) as items:
        assert items.get() == 1
        with pytest.raises(PermissionError, match="no entry"):
            items.get()
        with pytest.raises(StopIteration):
            items.get()
        with pytest.raises(StopIteration):
            items.get()


def test_read_ahead_waits_no_longer_than_told_and_loses_nothing() -> None:
    go = threading.Event()

    def work(item: int) -> int:
        go.wait(30)
        return item

    with ReadAhead([7, 8], work, num_threads=1, depth=4) as items:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                items.get(0.02)
        go.set()
        assert [items.get(), items.get(5)] == [7, 8]


def test_closing_early_ends_the_threads() -> None:
    source = ReadAhead(itertools.count(), lambda item: item, num_threads=3, depth=5)
    assert source.get() == 0
    source.close()
    deadline = time.monotonic() + 10
    while any(t.name.startswith("read-ahead") for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_large_folder_is_not_listed_before_the_first_path(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make_image(tmp_path / name / "x.png")
    paths = iter_paths([str(tmp_path)])
    assert next(paths) == str(tmp_path / "a" / "x.png")
    make_image(tmp_path / "c" / "y.png")  # seen, so that folder was not listed yet
    assert [Path(path).name for path in paths] == ["x.png", "x.png", "y.png"]


# --- As a process ---------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_results_follow_a_growing_list_and_ctrl_c_ends_with_130(
    fork: Any, checkpoint: Path, folder: Path
) -> None:
    command = fork("predict", "--checkpoint", checkpoint, "-", "--device", "cpu")
    read = []
    for name in ("a.png", "sub/c.png"):  # the second one is not known before the first is done
        command.stdin.write(os.fsencode(folder / name) + b"\n")
        read.append(json.loads(command.stdout.readline())["path"])
    assert read == [str(folder / "a.png"), str(folder / "sub" / "c.png")]
    command.interrupt()
    # The input stays open: the command must not wait for it.
    assert command.wait() == 130
    assert command.stdout.read() == b""
    assert command.stderr() == ""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork")
def test_a_reader_that_goes_away_ends_it_quietly(fork: Any, checkpoint: Path, folder: Path) -> None:
    words = ("predict", "--checkpoint", checkpoint, "-", "--device", "cpu", "--batch-size", 1)
    command = fork(*words)
    line = os.fsencode(folder / "a.png") + b"\n"
    command.stdin.write(line)
    assert json.loads(command.stdout.readline())
    command.stdout.close()  # as `| head -1` does
    command.stdin.write(line)
    assert command.wait() == 0
    assert command.stderr() == ""
