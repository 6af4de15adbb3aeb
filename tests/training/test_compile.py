"""Training with `torch.compile`, whose compiler takes minutes on a CPU."""

import json
from pathlib import Path

import pytest

from wavevit.cli.main import main
from wavevit.models.weights import load_model


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(image_folder: Path, tmp_path: Path) -> None:
    losses, names = [], []
    for options in ([], ["--trainer.compile", "--trainer.ema-decay", "0.9"]):
        run = tmp_path / f"run{len(options)}"
        settings = {
            "--data": str(image_folder),
            "--model": "wavevit_test",
            "--output": str(run),
            "--data.image-size": "32",
            "--data.batch-size": "8",
            "--data.num-workers": "0",
            "--optim.epochs": "1",
            "--optim.warmup-epochs": "0",
            "--trainer.log-every": "1",
        }
        words = [word for item in settings.items() for word in item]
        assert main(["train", "classification", *words, *options]) == 0
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if row["kind"] == "train"])
        names.append(load_model(run)[0].state_dict().keys())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert names[1] == names[0]
