"""Model files to run commands on, and commands in processes of their own."""

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from wavevit.cli.main import main
from wavevit.data.segmentation.palette import generated_palette
from wavevit.detection.card import DetectorCard
from wavevit.models.card import ModelCard, save_model
from wavevit.segmentation.card import SegmenterCard

LIMIT_S = 120


@pytest.fixture(scope="session")
def save_classifier() -> Callable[..., Path]:
    """`save_classifier(path, name, class_names, **card)`: a model file with random weights."""

    def save(path: Path, name: str, class_names: list[str], seed: int = 0, **card: Any) -> Path:
        torch.manual_seed(seed)
        values = {"image_size": (32, 32), **card}
        model_card = ModelCard(
            name, {"num_classes": len(class_names)}, class_names=class_names, **values
        )
        model: Any = model_card.build()
        nn.init.normal_(model.get_classifier().weight, std=1.0)  # so that images differ in it
        save_model(path, model.state_dict(), model_card)
        return path

    return save


@pytest.fixture(scope="session")
def save_detector() -> Callable[..., Path]:
    """`save_detector(path, name, class_names, **card)`: a small model file with random weights."""

    def save(
        path: Path,
        name: str = "mask_rcnn",
        class_names: Sequence[str] = ("ant", "bee", "cat"),
        seed: int = 0,
        options: dict[str, Any] | None = None,
        **card: Any,
    ) -> Path:
        torch.manual_seed(seed)
        narrow: dict[str, Any] = {"fpn_channels": 16, "score_threshold": 0.0}
        narrow["detections_per_image"] = 8
        if name == "mask_rcnn":
            narrow |= {"fc_channels": 16, "num_mask_convs": 1, "mask_channels": 16}
            narrow |= {"num_proposals_test": 50}
        else:
            narrow |= {"head_channels": 32, "fpn_channels": 32, "num_tower_convs": 1}
        values: dict[str, Any] = {
            "category_ids": [3 * number + 2 for number in range(len(class_names))],
            "short_edge": 64,
            "long_edge": 96,
            **card,
        }
        detector_card = DetectorCard(
            name, "wavevit_test", narrow | (options or {}), list(class_names), **values
        )
        save_model(path, detector_card.build().state_dict(), detector_card)
        return path

    return save


@pytest.fixture(scope="session")
def save_segmenter() -> Callable[..., Path]:
    """`save_segmenter(path, class_names, **card)`: a small model file with random weights."""

    def save(
        path: Path, class_names: Sequence[str] = ("sky", "road", "car"), seed: int = 0, **card: Any
    ) -> Path:
        torch.manual_seed(seed)
        values = {"short_edge": 64, "long_edge": 96, "size_rule": "keep_ratio", **card}
        segmenter_card = SegmenterCard(
            "upernet",
            "wavevit_test",
            {"channels": 16, "auxiliary": False},
            list(class_names),
            **{"palette": generated_palette(len(class_names)), **values},
        )
        segmenter = segmenter_card.build()
        classifier: Any = segmenter.network.head.classifier
        nn.init.normal_(classifier.weight, std=1.0)  # so that pixels differ in it
        save_model(path, segmenter.state_dict(), segmenter_card)
        return path

    return save


class ForkedCommand:
    """A running command, in a fork of this process: it need not import torch again.

    Args:
        words: After ``wavevit``.
        environment: What is added to the environment.
        prepare: Called in the new process before the command.

    Attributes:
        stdin: Binary, unbuffered.
        stdout: Binary.
    """

    def __init__(
        self,
        *words: object,
        environment: dict[str, str] | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        their_stdin, stdin = os.pipe()
        stdout, their_stdout = os.pipe()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (close does)

        def work() -> None:
            os.close(stdin)
            os.close(stdout)
            for number, theirs in enumerate((their_stdin, their_stdout, self._stderr.fileno())):
                os.dup2(theirs, number)
            os.close(their_stdin)
            os.close(their_stdout)
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
            # As a new interpreter, and not as pytest, has it.
            logging.root.handlers.clear()
            warnings.resetwarnings()
            for kind in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
                warnings.simplefilter("ignore", kind)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(environment or {})
            prepare()
            sys.exit(main([str(word) for word in words]))

        self._process = multiprocessing.get_context("fork").Process(target=work)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that pytest may have threads
            self._process.start()
        os.close(their_stdin)
        os.close(their_stdout)
        self.stdin = os.fdopen(stdin, "wb", 0)
        self.stdout = os.fdopen(stdout, "rb")

    def interrupt(self) -> None:
        """Does as Ctrl-C."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGINT)

    def wait(self) -> int | None:
        """Its exit code; None if it hangs."""
        self._process.join(LIMIT_S)
        return self._process.exitcode

    def stderr(self) -> str:
        """What it has said."""
        self._stderr.seek(0)
        return self._stderr.read().decode()

    def close(self) -> None:
        """Ends it, if it is still there, and frees what belongs to it."""
        self._process.kill()
        self._process.join()
        self._process.close()
        for stream in (self.stdin, self.stdout, self._stderr):
            stream.close()


@pytest.fixture(scope="module")
def fork() -> Iterator[Callable[..., ForkedCommand]]:
    """Starts commands, which end with the last test of the file at the latest."""
    started: list[ForkedCommand] = []

    def start(*words: object, **options: Any) -> ForkedCommand:
        started.append(ForkedCommand(*words, **options))
        return started[-1]

    yield start
    for command in started:
        command.close()
