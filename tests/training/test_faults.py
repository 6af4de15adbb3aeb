"""Real training, broken in every way we could think of: a clear message, and nothing lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from crash_runs import BROKEN, DIVERGED, KILLED, STOPPED, USAGE, Run, RunsOnDemand, run_all
from safetensors.numpy import load_file, save_file

from wavevit.data.label_maps.packed import FORMAT, shard_path

# fmt: off
BASE = [
    "train", "classification",
    "--model", "wavevit_test",
    "--model.drop-path-rate", "0.2",
    "--data.image-size", "32",
    "--data.batch-size", "4",
    "--trainer.ema-decay", "0.9",
    "--trainer.batch-norm", "reduce",
    "--trainer.checkpoint-every", "3",
    "--trainer.evaluate-every", "1.4",
    "--trainer.log-every", "1",
    "--trainer.timeout-s", "10",
    "--optim.epochs", "3",
    "--optim.warmup-epochs", "1",
    "--augment.mixup", "0.8",
]
# fmt: on
TOTAL_STEPS = 12

# What is broken in each start of a run of two processes, as (process, kind, step); how the
# processes then end; and what is said. The last start of each is left alone.
FAULTS: dict[str, tuple[list[list[list[Any]]], list[list[int]], str]] = {
    "kill -9 of one before a step": ([[[1, "kill_before_step", 5]]], [[BROKEN, KILLED]], "ended"),
    "kill -9 of the one that saves": (
        [[[0, "kill_in_checkpoint", 2]]],
        [[KILLED, BROKEN]],
        "ended",
    ),
    "SIGTERM to all": ([[[0, "term", 4], [1, "term", 4]]], [[STOPPED, STOPPED]], ""),
    "SIGTERM before the first step": ([[[0, "term_in_check", 1]]], [[STOPPED, STOPPED]], "stopped"),
    "SIGTERM to one": ([[[1, "term", 4]]], [[STOPPED, STOPPED]], ""),
    "a process that does not answer": ([[[1, "freeze", 5]]], [[BROKEN, KILLED]], "not answer"),
    "full disk": ([[[0, "full_disk", 2]]], [[USAGE, USAGE]], "cannot write the checkpoint"),
    "full disk under the log": ([[[0, "full_log", 5]]], [[USAGE, USAGE]], "File too large"),
    "truncated checkpoint": (
        [[[0, "kill_after_step", 8]], [[0, "truncate", 0], [1, "kill_before_step", 6]]],
        [[KILLED, BROKEN], [BROKEN, KILLED]],
        "is damaged",
    ),
    "flipped bit": (
        [[[0, "kill_after_step", 8]], [[0, "flip", 0], [1, "kill_before_step", 6]]],
        [[KILLED, BROKEN], [BROKEN, KILLED]],
        "is damaged",
    ),
    "checkpoints vanish": (
        [[[0, "vanish", 2], [1, "kill_before_step", 8]]],
        [[BROKEN, KILLED]],
        "step 6, the newest checkpoint",
    ),
    "NaN in a batch": ([[[1, "nan", 6]]], [[DIVERGED, DIVERGED]], "the loss is nan at step 6 on"),
    "a worker dies": (
        [[[1, "kill_worker", 5]]],
        [[BROKEN, BROKEN]],
        "a process that loads images has failed",
    ),
}


# Each kind of end once; the rest with the slow tests.
OFTEN = {
    "kill -9 of one before a step",
    "SIGTERM to one",
    "full disk",
    "truncated checkpoint",
    "NaN in a batch",
}


@pytest.fixture(scope="module")
def runs(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """An uninterrupted run of two processes, "whole", and one for every fault."""
    base = [*BASE, "--data", str(image_folder), "--data.num-workers"]
    scenarios: dict[str, Any] = {"whole": {"arguments": [*base, "0"], "processes": 2}}
    for name, (starts, _, _) in FAULTS.items():
        workers = "1" if name == "a worker dies" else "0"
        scenarios[name] = {
            "arguments": [*base, workers],
            "processes": 2,
            "starts": [*starts, []],
        }
    return RunsOnDemand(scenarios, tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow, id=name)
        for name in FAULTS
    ],
)
def test_a_fault_ends_the_run_with_a_code_and_a_line_and_resuming_loses_nothing(
    name: str, runs: dict[str, Run]
) -> None:
    run, (_, codes, words) = runs[name], FAULTS[name]
    assert run.codes == [*codes, [0, 0]], [start.stderr for start in run.starts]
    said = [start.stderr for start in run.starts]
    assert words in "".join(said[len(codes) - 1])
    for start in run.starts:
        assert start.seconds < 60  # no hang: some seconds of work, and 10 of waiting
        for text in start.stderr:
            if name != "a worker dies":  # of which torch tells destructors too, now and then
                assert "Traceback" not in text
            assert sum("error:" in line for line in text.splitlines()) <= 1
    whole = runs["whole"]
    assert whole.codes == [[0, 0]]
    expected, found = whole.checkpoint(), run.checkpoint()
    assert found["position"]["step"] == TOTAL_STEPS
    for part in ("model", "ema", "optimizer"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)
    assert run.log() == whole.log()
    assert not list((run.folder / "checkpoints").glob(".*"))


def test_nan_names_the_samples(runs: dict[str, Run]) -> None:
    first, second = runs["NaN in a batch"].starts[0].stderr
    assert "train/" in first
    assert ".png" in first
    assert second == ""  # process 0 says it for all


def test_what_was_lost_is_at_most_the_steps_since_the_checkpoint(runs: dict[str, Run]) -> None:
    """Killed before step 5, after the checkpoint of step 3: resumed there."""
    said = "".join(runs["kill -9 of one before a step"].starts[0].stderr)
    assert "goes on from step 3, the newest checkpoint" in said


def test_a_corrupt_shard_costs_its_samples_only_and_is_listed(
    image_folder: Path, tmp_path: Path
) -> None:
    from wavevit.cli.main import main

    shards = tmp_path / "shards"
    assert main(["shard", str(image_folder), str(shards)]) == 0
    tar = next(shards.glob("train*.tar"))
    content = bytearray(tar.read_bytes())
    at = content.index(b"IDAT") + 20  # inside the pixels of its first picture
    content[at] ^= 255
    tar.write_bytes(content)
    arguments = [*BASE, "--data", str(shards), "--data.num-workers", "0"]
    run = run_all({"": {"arguments": arguments, "processes": 2}}, tmp_path)[""]
    assert run.codes == [[0, 0]], run.starts[0].stderr
    report = (run.folder / "report.md").read_text()
    assert "## 1 training files could not be read and were replaced" in report
    assert tar.name in report


def test_a_corrupt_shard_of_the_validation_set_stops_the_run_at_its_start(
    image_folder: Path, tmp_path: Path
) -> None:
    from wavevit.cli.main import main

    shards = tmp_path / "shards"
    assert main(["shard", str(image_folder), str(shards)]) == 0
    tar = next(shards.glob("val*.tar"))
    content = bytearray(tar.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 255
    tar.write_bytes(content)
    arguments = [*BASE, "--data", str(shards), "--data.num-workers", "0"]
    run = run_all({"": {"arguments": arguments, "processes": 2}}, tmp_path)[""]
    assert run.codes == [[USAGE, USAGE]]
    assert "1 of 8 validation images cannot be read" in run.starts[0].stderr[0]
    assert tar.name in run.starts[0].stderr[0]


def test_a_damaged_label_map_ends_all_processes_with_one_line(
    image_folder: Path, random_maps: Path, tmp_path: Path
) -> None:
    """One process alone meets it, and the other hears from it what is wrong."""
    path = shard_path(random_maps, 0)
    content = load_file(path)
    content["scores"][7] += 1  # and not its checksum
    save_file(content, path, {"format": FORMAT})
    arguments = [*BASE, "--data", str(image_folder), "--data.num-workers", "0"]
    arguments += [
        "--augment.mixup",
        "0",
        "--augment.cutmix",
        "0",
        "--token-label.maps",
        str(random_maps),
    ]
    run = run_all({"": {"arguments": arguments, "processes": 2}}, tmp_path)[""]
    assert run.codes == [[USAGE, USAGE]], run.starts[0].stderr
    said = [line for text in run.starts[0].stderr for line in text.splitlines()]
    assert len([line for line in said if "error:" in line]) == 1, said
    assert "the label map of image 'blue/7'" in "".join(said)
    assert run.starts[0].seconds < 60
