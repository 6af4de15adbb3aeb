"""Several processes compute what one does, and each run can go on with another number of them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_runs import STOPPED, Run, RunsOnDemand, run_all

from wavevit.training.loop import Trainer

# fmt: off
PLAIN = [
    "train", "classification",
    "--data.image-size", "32",
    "--data.num-workers", "0",
    "--augment.crop-scale", "[1, 1]",
    "--augment.crop-ratio", "[1, 1]",
    "--augment.hflip", "0",
    "--augment.color-jitter", "null",
    "--optim.epochs", "2",
    "--optim.warmup-epochs", "1",
    "--optim.eps", "1e-5",  # Adam blows gradients of the size of rounding up to steps of lr
    "--trainer.precision", "fp64",
    "--trainer.log-every", "1",
    "--trainer.checkpoint-every", "3",
]
WAVE_VIT = ["--model", "wavevit_test"]
WITHOUT_BATCH_NORM = ["--model", "test_vit"]
EVERYTHING = [
    "--trainer.ema-decay", "0.9", "--trainer.clip-grad", "0.5", "--augment.repeats", "2",
]
# fmt: on


def scenario(model: list[str], *more: str, processes: int = 1, batch: int = 4) -> dict[str, Any]:
    words = [*PLAIN, *model, *more, "--data.batch-size", str(batch)]
    return {"arguments": words, "processes": processes}


SCENARIOS = {
    "one process": scenario(WAVE_VIT, batch=8),
    "two processes, sync": scenario(WAVE_VIT, "--trainer.batch-norm", "sync", processes=2),
    "two processes, sync, checkpointing": scenario(
        WAVE_VIT,
        *("--trainer.batch-norm", "sync", "--model.grad-checkpointing", "true"),
        processes=2,
    ),
    "two passes": scenario(WAVE_VIT, "--trainer.accumulate", "2"),
    "two processes, local": scenario(WAVE_VIT, "--trainer.batch-norm", "local", processes=2),
    "two processes, reduce": scenario(WAVE_VIT, "--trainer.batch-norm", "reduce", processes=2),
    "two passes, no BatchNorm": scenario(WITHOUT_BATCH_NORM, *EVERYTHING, "--trainer.accumulate=2"),
    "two processes, no BatchNorm": scenario(
        WITHOUT_BATCH_NORM, *EVERYTHING, "--trainer.batch-norm", "sync", processes=2
    ),
    "three processes, no BatchNorm": scenario(
        WITHOUT_BATCH_NORM, *EVERYTHING, processes=3, batch=2
    ),
    "six at once, no BatchNorm": scenario(WITHOUT_BATCH_NORM, *EVERYTHING, batch=6),
    "one process, fp32": scenario(WAVE_VIT, *EVERYTHING, "--trainer.precision", "fp32", batch=8),
    "two processes, sharded": scenario(
        WAVE_VIT,
        *(*EVERYTHING, "--trainer.precision", "fp32"),
        *("--trainer.strategy", "fsdp", "--trainer.batch-norm", "sync"),
        processes=2,
    ),
}


@pytest.fixture(scope="module")
def runs(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    scenarios = copy.deepcopy(SCENARIOS)
    for each in scenarios.values():
        each["arguments"] += ["--data", str(image_folder)]
    return RunsOnDemand(scenarios, tmp_path_factory.mktemp("runs"))


def assert_same(one: Run, other: Run, *, atol: float, parts: tuple[str, ...] = ("model",)) -> None:
    for run in (one, other):
        assert all(set(codes) == {0} for codes in run.codes), [s.stderr for s in run.starts]
    for part in parts:
        expected, found = one.checkpoint()[part], other.checkpoint()[part]
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_two_processes_with_synchronised_batch_norm_equal_one_with_their_batch(
    runs: dict[str, Run],
) -> None:
    """Weights and running statistics, in fp64 without augmentation."""
    assert_same(runs["one process"], runs["two processes, sync"], atol=1e-9)


@pytest.mark.slow
def test_checkpointing_changes_nothing_of_it(runs: dict[str, Run]) -> None:
    assert_same(runs["one process"], runs["two processes, sync, checkpointing"], atol=1e-9)


def weights_of(run: Run) -> dict[str, Any]:
    model = run.checkpoint()["model"]
    return {name: value for name, value in model.items() if "running" not in name}


@pytest.mark.slow
def test_two_processes_equal_one_with_two_passes(runs: dict[str, Run]) -> None:
    """With and without BatchNorm, whose running statistics alone depend on who saw what."""
    assert_same(runs["two passes, no BatchNorm"], runs["two processes, no BatchNorm"], atol=1e-9)
    found = {name: weights_of(runs[name]) for name in ("two passes", "two processes, local")}
    for part in found.values():
        for name in [name for name in part if "num_batches_tracked" in name]:
            part.pop(name)  # two batches a step seen by one, one by each of two
    torch.testing.assert_close(*found.values(), rtol=0, atol=1e-9)


def test_three_processes_equal_one(runs: dict[str, Run]) -> None:
    one, three = runs["six at once, no BatchNorm"], runs["three processes, no BatchNorm"]
    assert_same(one, three, atol=1e-9, parts=("model", "ema", "optimizer"))


@pytest.mark.parametrize(("processes", "passes"), [(1, 8), (2, 4), (8, 1)])
def test_images_per_step_gives_the_passes(processes: int, passes: int) -> None:
    trainer = Trainer(images_per_step=1024)
    assert trainer.passes_per_step(128, processes) == passes
    with pytest.raises(ValueError, match="3 processes take 384 images at once"):
        trainer.passes_per_step(128, 3)


@pytest.mark.slow
def test_reduced_statistics_are_the_mean_over_the_processes(runs: dict[str, Run]) -> None:
    """Averaging at the end of each evaluation changes statistics, and nothing else."""
    local, reduced = runs["two processes, local"], runs["two processes, reduce"]
    torch.testing.assert_close(weights_of(local), weights_of(reduced), rtol=0, atol=0)
    name = "stages.0.patch_embed.conv.1.running_mean"
    assert not torch.equal(local.checkpoint()["model"][name], reduced.checkpoint()["model"][name])


@pytest.mark.slow
def test_a_sharded_run_equals_an_unsharded_one(runs: dict[str, Run]) -> None:
    """In fp32, after 8 steps; its checkpoint holds whole tensors under the same names."""
    plain, sharded = runs["one process, fp32"], runs["two processes, sharded"]
    for part in ("model", "ema"):
        assert_same(plain, sharded, atol=2e-4, parts=(part,))
    assert_same_logs([plain.log()[0]], [sharded.log()[0]], rel=1e-4)


def test_the_log_says_the_same_for_any_number_of_processes(runs: dict[str, Run]) -> None:
    """Losses, rates and validation scores: also of an evaluation that no process could halve."""
    one, three = (runs[f"{n}, no BatchNorm"] for n in ("six at once", "three processes"))
    assert_same_logs(one.log(), three.log(), rel=1e-8)


def assert_same_logs(ours: list[Any], theirs: list[Any], *, rel: float) -> None:
    assert [row.pop("kind") for row in ours] == [row.pop("kind") for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=rel)


@pytest.fixture(scope="module")
def resharded(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Sharded runs that go on sharded, and not."""
    base = [*PLAIN, *WAVE_VIT, *EVERYTHING, "--data", str(image_folder)]
    base += ["--trainer.precision", "fp32", "--trainer.batch-norm", "reduce"]
    base += ["--data.batch-size", "4"]
    sharded = [*base, "--trainer.strategy", "fsdp"]
    stopped = {"arguments": sharded, "processes": 2, "starts": [[[1, "term", 4]]]}
    root = tmp_path_factory.mktemp("resharded")
    found = run_all(
        {
            "whole": {"arguments": sharded, "processes": 2},
            "resumed": {**stopped, "starts": [[[1, "term", 4]], []]},
            "resumed unsharded": stopped,
        },
        root,
    )
    name = "resumed unsharded"
    more = run_all({name: {"arguments": base, "processes": 2}}, root / "more", [found[name].folder])
    found[name].starts += more[name].starts
    return found


@pytest.mark.slow
def test_a_sharded_run_resumes_to_the_same_bits(resharded: dict[str, Run]) -> None:
    run = resharded["resumed"]
    assert run.codes == [[STOPPED, STOPPED], [0, 0]], [start.stderr for start in run.starts]
    whole, found = resharded["whole"].checkpoint(), run.checkpoint()
    for part in ("model", "ema", "optimizer"):
        torch.testing.assert_close(found[part], whole[part], rtol=0, atol=0)


@pytest.mark.slow
def test_a_sharded_run_goes_on_unsharded(resharded: dict[str, Run]) -> None:
    run = resharded["resumed unsharded"]
    assert run.codes == [[STOPPED, STOPPED], [0, 0]], [start.stderr for start in run.starts]
    whole, found = resharded["whole"].checkpoint(), run.checkpoint()
    torch.testing.assert_close(found["model"], whole["model"], rtol=0, atol=2e-4)


@pytest.mark.slow
def test_token_labels_train_alike_sharded_and_not(
    image_folder: Path, random_maps: Path, tmp_path: Path
) -> None:
    base = [*PLAIN, *WAVE_VIT, "--data", str(image_folder), "--data.batch-size", "4"]
    base += ["--trainer.precision", "fp32", "--token-label.maps", str(random_maps)]
    sharded = [*base, "--trainer.strategy", "fsdp"]
    scenarios = {"plain": base, "sharded": sharded}
    found = run_all({k: {"arguments": v, "processes": 2} for k, v in scenarios.items()}, tmp_path)
    assert_same(found["plain"], found["sharded"], atol=2e-4)
    assert found["sharded"].starts[0].stderr == ["", ""]


@pytest.fixture(scope="module")
def resumed(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs that go on with another number of processes, or another strategy."""
    base = [*PLAIN, *WITHOUT_BATCH_NORM, *EVERYTHING, "--data", str(image_folder)]
    six = [*base, "--data.batch-size", "6"]
    root = tmp_path_factory.mktemp("resumed")
    output = run_all(
        {
            "whole": {"arguments": six},
            "1 to 3": {"arguments": six, "starts": [[[0, "term", 4]]]},
            "1 to 2, other step": {"arguments": six, "starts": [[[0, "term", 4]]]},
        },
        root,
    )
    again = [*base, "--data.batch-size", "2"]
    for name, processes in (("1 to 3", 3), ("1 to 2, other step", 2)):
        # The same folder once more, by its own name.
        folder = output[name].folder
        more = run_all(
            {name: {"arguments": again, "processes": processes}}, folder.parent / name, [folder]
        )
        output[name].starts += more[name].starts
    return output


def test_a_run_goes_on_with_another_number_of_processes(resumed: dict[str, Run]) -> None:
    """The same samples in the same steps: so the same weights, in fp64, but for rounding."""
    run = resumed["1 to 3"]
    assert run.codes == [[STOPPED], [0, 0, 0]]
    whole, found = resumed["whole"].checkpoint(), run.checkpoint()
    torch.testing.assert_close(found["model"], whole["model"], rtol=0, atol=1e-9)
    assert_same_logs(resumed["whole"].log(), run.log(), rel=1e-8)


def test_steps_of_another_size_are_refused_on_resuming(resumed: dict[str, Run]) -> None:
    run = resumed["1 to 2, other step"]
    assert run.codes == [[STOPPED], [2, 2]]
    first, second = run.starts[-1].stderr
    assert "cannot resume with 4 images a step: the run has 6" in first
    assert second == ""
