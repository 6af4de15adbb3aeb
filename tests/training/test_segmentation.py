"""The segmentation task: how it is measured, what is decayed, and any number of processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from crash_runs import Run, run_all
from lightning_fabric import Fabric
from torch import Tensor, nn

from wavevit.data.segmentation.transforms import normalise
from wavevit.segmentation.factory import create_segmenter
from wavevit.segmentation.official import our_state
from wavevit.training.optimization import Optimization
from wavevit.training.segmentation import SegmentationTask
from wavevit.training.segmentation_examples import choose_segmentation_examples
from wavevit.training.segmentation_settings import (
    SegmentationAugmentation,
    SegmentationData,
    SegmenterSettings,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ADE20K = CONFIGS / "segmentation/ade20k_upernet_wavevit_s_160k.yaml"


def make_task(
    folder: Path, *, data: dict[str, Any] | None = None, **model: Any
) -> SegmentationTask:
    """A task on tiny images with a tiny segmenter."""
    sizes = {"short_edge": 64, "long_edge": 64, "batch_size": 2, "num_workers": 0}
    settings = {"backbone": "wavevit_test", "heads": "narrow", **model}
    return SegmentationTask(
        SegmentationData(str(folder), **{**sizes, **(data or {})}),
        SegmentationAugmentation(crop_size=(32, 48)),
        SegmenterSettings(**settings),
        0,
    )


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


class Oracle(nn.Module):
    """Knows the labels, in the order that evaluations ask for them, at the network's size."""

    def __init__(self, task: SegmentationTask, wrong: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.task = task
        self.wrong = wrong
        self.index = 0

    def forward(self, images: Tensor) -> Tensor:
        labels = self.task.val_set.load(self.index).labels
        if self.index == self.wrong:
            labels = (labels + 1) % 10
        self.index += 1
        logits = nn.functional.one_hot(labels.long(), 10).permute(2, 0, 1)[None].float()
        assert images.shape[-2:] == logits.shape[-2:]
        return logits


def test_a_faultless_segmenter_has_an_iou_of_one(masks_folder: Path, fabric: Fabric) -> None:
    task = make_task(masks_folder)
    found = task.evaluate(fabric, Oracle(task))
    assert found["score"] == found["mean_iou"] == found["pixel_accuracy"] == 1
    assert task.result is not None
    assert task.result.num_images == 3


def test_mistakes_are_counted_and_come_first(masks_folder: Path, fabric: Fabric) -> None:
    task = make_task(masks_folder)
    found = task.evaluate(fabric, Oracle(task, wrong=1))
    assert found["pixel_accuracy"] == pytest.approx(2 / 3)
    assert task.result is not None
    (_, hardest), _ = choose_segmentation_examples(
        task.val_set, task.result.rows, lambda image: torch.zeros(64, 64, dtype=torch.uint8)
    )
    assert hardest[0].name == "images/val/1.png"
    assert hardest[0].caption == "mean IoU 0.0%, 0.0% of the pixels right"


def test_the_network_gets_normalised_pixels_and_labels(masks_folder: Path, fabric: Fabric) -> None:
    task = make_task(masks_folder)
    batch = next(task.train_batches(fabric, start=0, stop=1, accumulate=1, timeout_s=0))
    seen: list[Tensor] = []

    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            seen.extend([images, labels])
            return {"decode_ce": images.mean()}

    assert task.loss(fabric, Remembering(), batch).keys() == {"loss_decode_ce"}
    torch.testing.assert_close(
        seen[0], normalise(batch.images, task.card.mean, task.card.std), rtol=0, atol=0
    )
    assert seen[0].shape == (2, 3, 32, 48)
    assert seen[1].dtype == torch.int64
    assert seen[1].shape == (2, 32, 48)


@pytest.mark.parametrize(
    ("batch_norm", "trained", "moves"),
    [("trained", True, True), ("affine_frozen", False, True), ("frozen", False, False)],
)
def test_batch_norms_of_the_backbone_do_as_told_and_the_heads_learn(
    batch_norm: str, trained: bool, moves: bool, masks_folder: Path, fabric: Fabric
) -> None:
    task = make_task(masks_folder, batch_norm=batch_norm)
    model = task.build_model()
    task.set_train_mode(model)
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    body = {n: m for n, m in norms.items() if ".backbone." in n}
    heads = {n: m for n, m in norms.items() if n not in body}
    assert len(body) > 1
    assert len(heads) > 1
    assert all(m.weight.requires_grad == trained and m.training == moves for m in body.values())
    assert all(m.weight.requires_grad and m.training for m in heads.values())
    batch = next(task.train_batches(fabric, start=0, stop=1, accumulate=1, timeout_s=0))
    sum(task.loss(fabric, model, batch).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_published_weight_decay_is_that_of_official_names_with_norm(golden: Path) -> None:
    """Norms of blocks, stages and patch embeddings; not that of keys and values, nor the heads'."""
    facts = json.loads((golden / "segmentation/upernet_s_seed0.json").read_text())
    with torch.device("meta"):
        segmenter = create_segmenter("upernet", "wavevit_s", num_classes=150)
    recipe = yaml.safe_load(ADE20K.read_text())["optim"]
    optimizer = Optimization(no_decay=recipe["no_decay"], weight_decay=0.01).optimizer(
        segmenter, 16
    )
    name_of = {id(parameter): name for name, parameter in segmenter.named_parameters()}
    ours = {
        name_of[id(parameter)]: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    # Each tensor holds its own weight decay, so that it can be told under its new name.
    state = {
        name: torch.tensor(0.0 if "norm" in name else 0.01).expand(shape)
        for name, shape, _ in facts["state_dict"]
        if not name.endswith((".w_ll", ".w_lh", ".w_hl", ".w_hh", ".filters"))
    }
    theirs = {name: float(v.flatten()[0]) for name, v in our_state(segmenter, state).items()}
    assert ours == pytest.approx({name: theirs[name] for name in ours})
    assert 0 in ours.values()


# fmt: off
PLAIN = [
    "train", "segmentation",
    "--backbone", "wavevit_test",
    "--model.heads", "narrow",
    "--model.batch-norm", "trained",
    "--model.options.dropout", "0",
    "--data.short-edge", "64",
    "--data.long-edge", "64",
    "--data.num-workers", "0",
    "--augment.crop-size", "[48, 64]",
    "--augment.scales", "[1, 1]",
    "--augment.photometric", "false",
    "--augment.hflip", "0",
    "--optim.epochs", "1",
    "--optim.warmup-epochs", "0",
    "--optim.eps", "1e-5",  # Adam blows gradients of the size of rounding up to steps of lr
    "--trainer.log-every", "1",
    "--trainer.precision", "fp64",
    "--trainer.batch-norm", "sync",
    "--trainer.clip-grad", "1",
]
# fmt: on


def test_two_processes_train_and_measure_as_one_with_their_batch(
    masks_folder: Path, tmp_path: Path
) -> None:
    """In fp64; the three validation images are shared unevenly."""
    words = [*PLAIN, "--data", str(masks_folder)]
    runs: dict[str, Run] = run_all(
        {
            "one": {"arguments": [*words, "--data.batch-size", "2"]},
            "two": {"arguments": [*words, "--data.batch-size", "1"], "processes": 2},
        },
        tmp_path,
    )
    one, two = runs["one"], runs["two"]
    assert (one.codes, two.codes) == ([[0]], [[0, 0]]), two.starts[0].stderr
    weights = [run.checkpoint()["model"] for run in (one, two)]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-9)
    for ours, theirs in zip(one.log(), two.log(), strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, rel=1e-8)
