"""An evaluation says the same, to the last bit, for any number of processes."""

import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from crash_runs import BROKEN, Run, run_all
from PIL import Image

from wavevit.models.card import ModelCard, save_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images: neither two nor three processes can share them evenly."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, count in (("a", 12), ("b", 11)):
        (root / "val" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (40, 36, 3), np.uint8)
            Image.fromarray(pixels).save(root / "val" / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = timm.create_model("wavevit_test", num_classes=2)
    card = ModelCard(
        model="wavevit_test",
        model_args={"num_classes": 2},
        class_names=["a", "b"],
        image_size=(32, 32),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        crop_pct=1.0,
        interpolation="bilinear",
    )
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, network.state_dict(), card)
    return path


@pytest.fixture(scope="module")
def runs(data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    words = ["evaluate", "--checkpoint", str(model), "--batch-size", "4", "--num-workers", "0"]
    folder = tmp_path_factory.mktemp("runs")
    scenarios = {
        str(number): {"arguments": [*words, "--data", str(data)], "processes": number}
        for number in (1, 2, 3)
    }
    scenarios["bad data"] = {"arguments": [*words, "--data", str(data / "no")], "processes": 2}
    broken = folder / "broken"
    (broken / "val").mkdir(parents=True)
    for name in ("a", "b"):
        os.symlink(data / "val" / name, broken / "val" / name)
    (broken / "val" / "c").mkdir()
    scenarios["other classes"] = {"arguments": [*words, "--data", str(broken)], "processes": 2}
    scenarios["a worker dies"] = {
        "arguments": [*words[:-1], "1", "--data", str(data)],
        "starts": [[[0, "kill_worker_in_evaluate", 3]]],  # the first call is a trial
    }
    return run_all(scenarios, folder)


@pytest.mark.parametrize("number", ["2", "3"])
def test_every_file_is_the_same_byte_for_byte(number: str, runs: dict[str, Run]) -> None:
    one, several = runs["1"], runs[number]
    assert one.codes == [[0]]
    assert several.codes == [[0] * int(number)], several.starts[0].stderr
    for name in ("metrics.json", "per_class.csv"):
        assert (several.folder / name).read_bytes() == (one.folder / name).read_bytes()


@pytest.mark.parametrize("name", ["bad data", "other classes"])
def test_a_users_mistake_is_one_line_of_one_process(name: str, runs: dict[str, Run]) -> None:
    run = runs[name]
    assert run.codes == [[2, 2]]
    first, second = run.starts[0].stderr
    assert len(first.splitlines()) == 1
    assert second == ""
    assert not run.folder.exists() or not list(run.folder.iterdir())


def test_a_worker_that_dies_ends_the_evaluation_with_a_line(runs: dict[str, Run]) -> None:
    start = runs["a worker dies"].starts[0]
    assert start.codes == [BROKEN]
    # torch may raise in a destructor too, which Python then mentions before.
    assert "a process that loads images has failed" in start.stderr[0].splitlines()[-1]
