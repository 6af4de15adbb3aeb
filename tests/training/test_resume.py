"""A run that was broken off and resumed ends with the weights of one that was not, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from crash_runs import KILLED, STOPPED, Run, RunsOnDemand
from safetensors.torch import load_file

from wavevit.models.card import read_card

# 30 images in batches of 4, two per step: batches span epochs, so a resumed run must find its place
# inside one. Everything that draws numbers or keeps state is on.
# fmt: off
ARGUMENTS = [
    "train", "classification",
    "--model", "wavevit_test",
    "--model.drop-path-rate", "0.2",
    "--model.drop-rate", "0.1",
    "--data.image-size", "32",
    "--data.batch-size", "4",
    "--data.num-workers", "{workers}",
    "--trainer.accumulate", "2",
    "--trainer.ema-decay", "0.9",
    "--trainer.clip-grad", "1.0",
    "--trainer.checkpoint-every", "3",
    "--trainer.evaluate-every", "0.8",
    "--trainer.log-every", "1",
    "--optim.epochs", "3",
    "--optim.warmup-epochs", "1",
    "--augment.mixup", "0.8",
    "--augment.cutmix", "1.0",
    "--augment.rand-augment", "rand-m9-mstd0.5-inc1",
    "--augment.random-erasing", "0.25",
    "--augment.repeats", "2",
]
# fmt: on
TOTAL_STEPS = 12

SCENARIOS = {
    "kill before the first step": [["kill_before_step", 1]],
    "kill before a step": [["kill_before_step", 5]],
    "kill after a step": [["kill_after_step", 8]],
    "kill while a checkpoint is written": [["kill_in_checkpoint", 2]],
    "kill behind a checkpoint": [["kill_after_rename", 3]],
    "SIGTERM": [["term", 4]],
    "Ctrl-C": [["interrupt", 7]],
    "several in turn": [["term", 2], ["kill_after_step", 3], ["kill_before_step", 4]],
}
# The rest with the slow tests.
OFTEN = {"kill while a checkpoint is written", "SIGTERM", "several in turn"}
NAMES = [
    pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow, id=name)
    for name in SCENARIOS
]


@pytest.fixture(scope="module")
def runs(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The uninterrupted run ("") and that of every scenario."""
    scenarios: dict[str, Any] = {}
    for name, breaks in {"": [], **SCENARIOS}.items():
        workers = 1 if name == "SIGTERM" else 0
        arguments = [word.format(workers=workers) for word in ARGUMENTS]
        scenarios[name] = {
            "arguments": [*arguments, "--data", str(image_folder)],
            "starts": [*([[0, kind, step]] for kind, step in breaks), []],
            "pictures": name == "several in turn",
        }
    return RunsOnDemand(scenarios, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", NAMES)
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    name: str, runs: dict[str, Run]
) -> None:
    plain, run = runs[""], runs[name]
    assert plain.codes == [[0]]
    signals = [STOPPED if kind in ("term", "interrupt") else KILLED for kind, _ in SCENARIOS[name]]
    assert run.codes == [*([code] for code in signals), [0]]
    expected, found = plain.checkpoint(), run.checkpoint()
    assert found["position"]["step"] == TOTAL_STEPS
    generators = found["rng"][0], expected["rng"][0]
    assert generators[0]["numpy"].pop(0) == generators[1]["numpy"].pop(0)  # the generator's name
    for part in ("model", "ema", "optimizer", "rng"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)
    best = [folder / "best.safetensors" for folder in (run.folder, plain.folder)]
    torch.testing.assert_close(load_file(best[0]), load_file(best[1]), rtol=0, atol=0)
    assert read_card(best[0]) == read_card(best[1])


@pytest.mark.parametrize("name", NAMES)
def test_log_of_a_resumed_run_holds_every_step_once(name: str, runs: dict[str, Run]) -> None:
    assert runs[name].log() == runs[""].log()


def test_a_finished_run_leaves_pictures_and_a_report(runs: dict[str, Run]) -> None:
    run = runs["several in turn"].folder
    for name in ("curves", "samples", "predictions", "confusion"):
        assert (run / f"{name}.png").stat().st_size > 1000
    assert "| best top-1 |" in (run / "report.md").read_text()
    assert list(run.glob("checkpoints/.*")) == []
