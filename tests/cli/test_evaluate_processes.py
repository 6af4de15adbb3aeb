"""An evaluation says the same, to the last bit, for any number of processes."""

import itertools
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

import wavevit.cli.evaluation_files  # what a run imports: once, before the forks
import wavevit.training.processes  # noqa: F401
from wavevit.cli.inference import Classifier
from wavevit.cli.main import EXIT_BROKEN, EXIT_USAGE

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no fork")


@pytest.fixture(scope="module")
def data(write_images: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images: five batches, the last of three, which three processes cannot share evenly."""
    root = tmp_path_factory.mktemp("data")
    write_images(root, *(f"val/{'ab'[number % 2]}/{number}.png" for number in range(23)))
    return root


@pytest.fixture(scope="module")
def model(save_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    return save_classifier(path, "wavevit_test", ["a", "b"])


@dataclass
class Evaluation:
    """What the processes of an evaluation did."""

    output: Path
    codes: list[int | None]
    stderr: list[str]


@pytest.fixture(scope="module")
def evaluate(
    fork: Callable[..., Any], model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Evaluation]:
    """`evaluate(data, processes, ...)`: on all of them, as torchrun would have started them."""

    def run(data: Path, processes: int, num_workers: int = 0, **options: Any) -> Evaluation:
        output = tmp_path_factory.mktemp("out") / "out"
        words = ["evaluate", "--checkpoint", model, "--data", data, "--output", output]
        words += ["--batch-size", 5, "--num-workers", num_workers]
        launched = {
            "TORCHELASTIC_RUN_ID": "test",
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        commands = [
            fork(*words, environment={**launched, **place} if processes > 1 else {}, **options)
            for place in places
        ]
        codes = [command.wait() for command in commands]
        return Evaluation(output, codes, [command.stderr() for command in commands])

    return run


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_every_file_is_the_same_byte_for_byte(
    evaluate: Callable[..., Evaluation], data: Path
) -> None:
    one = evaluate(data, 1)
    for processes in (2, 3):
        several = evaluate(data, processes)
        assert (one.codes, several.codes) == ([0], [0] * processes), several.stderr
        for name in ("metrics.json", "per_class.csv"):
            assert (several.output / name).read_bytes() == (one.output / name).read_bytes()


def test_a_users_mistake_is_one_line_of_one_process(
    evaluate: Callable[..., Evaluation], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "val").mkdir()
    for name in ("a", "b"):
        os.symlink(data / "val" / name, tmp_path / "val" / name)
    (tmp_path / "val" / "c").mkdir()  # a class that the model does not have
    for wrong in (tmp_path, tmp_path / "no"):
        run = evaluate(wrong, 2)
        assert run.codes == [EXIT_USAGE] * 2
        first, second = run.stderr
        assert len(first.splitlines()) == 1
        assert second == ""
        assert not run.output.exists() or not list(run.output.iterdir())


def test_a_worker_that_dies_ends_the_evaluation_with_a_line(
    evaluate: Callable[..., Evaluation], data: Path
) -> None:
    def kill_worker_at_the_second_batch() -> None:
        logits, calls = Classifier.logits, itertools.count(1)

        def patched(self: Classifier, images: torch.Tensor) -> torch.Tensor:
            if next(calls) == 3:  # the first is a trial
                for worker in torch.multiprocessing.active_children():
                    assert worker.pid is not None
                    os.kill(worker.pid, signal.SIGKILL)
            return logits(self, images)

        Classifier.logits = patched  # type: ignore[method-assign]

    run = evaluate(data, 1, num_workers=1, prepare=kill_worker_at_the_second_batch)
    assert run.codes == [EXIT_BROKEN], run.stderr
    # torch may raise in a destructor too, which Python then mentions before.
    assert "a process that loads images has failed" in run.stderr[0].splitlines()[-1]
