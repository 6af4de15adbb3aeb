"""Two processes, one of them killed at random moments, resumed each time: nothing is different."""

import random
from pathlib import Path

import pytest
import torch
from crash_runs import BROKEN, KILLED, Run, run_all

# fmt: off
ARGUMENTS = [
    "train", "classification",
    "--model", "wavevit_test",
    "--model.drop-path-rate", "0.2",
    "--data.image-size", "32",
    "--data.batch-size", "4",
    "--data.num-workers", "0",
    "--trainer.ema-decay", "0.9",
    "--trainer.clip-grad", "1.0",
    "--trainer.checkpoint-every", "2",
    "--trainer.evaluate-every", "1.4",
    "--trainer.log-every", "1",
    "--trainer.timeout-s", "20",
    "--optim.epochs", "4",
    "--optim.warmup-epochs", "1",
    "--augment.mixup", "0.8",
    "--augment.cutmix", "1.0",
    "--augment.random-erasing", "0.25",
]
# fmt: on


COUNT = 30


def assert_equal(run: Run, whole: Run) -> None:
    expected, found = whole.checkpoint(), run.checkpoint()
    for part in ("model", "ema", "optimizer"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)
    assert run.log() == whole.log()


@pytest.mark.slow
def test_thirty_random_kills(image_folder: Path, tmp_path: Path) -> None:
    arguments = [*ARGUMENTS, "--data", str(image_folder)]
    plain = {"arguments": arguments, "processes": 2}
    whole = run_all({"": plain}, tmp_path / "whole")[""]
    assert whole.codes == [[0, 0]], whole.starts[0].stderr
    draw = random.Random(0)
    scenarios = {}
    for number in range(COUNT):
        rank, moment = draw.randrange(2), draw.uniform(0, whole.starts[0].seconds)
        scenarios[str(number)] = {**plain, "starts": [[[rank, "kill_after_s", moment]], []]}
    runs = run_all(scenarios, tmp_path / "killed")
    killed = 0
    for run in runs.values():
        first, last = run.codes
        assert last == [0, 0], run.starts[-1].stderr
        # Whoever was killed took the other one along, unless the work was done by then.
        assert set(first) <= {KILLED, BROKEN, 0}, run.starts[0].stderr
        killed += KILLED in first
        assert_equal(run, whole)
    assert killed >= COUNT // 2
