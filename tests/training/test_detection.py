"""The detection task: what reaches the detector, what is frozen, how it is measured."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crash_runs import Run, run_all
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wavevit.data.detection.transforms import detection_eval_transform
from wavevit.detection.factory import create_detector
from wavevit.detection.official import our_state
from wavevit.layers.sync_batch_norm import SyncBatchNorm, convert_sync_batch_norm
from wavevit.metrics.average_precision import AveragePrecision, recall_levels
from wavevit.training.detection import DetectionTask
from wavevit.training.detection_examples import best_f1, choose_detection_examples
from wavevit.training.detection_settings import (
    NARROW_HEADS,
    DetectionAugmentation,
    DetectionData,
    DetectorSettings,
)
from wavevit.training.optimization import Optimization


def make_task(folder: Path, *, data: dict[str, Any] | None = None, **model: Any) -> DetectionTask:
    """A task on tiny images with a tiny detector."""
    sizes = {"short_edge": 64, "long_edge": 64, "batch_size": 2, "num_workers": 0}
    settings = {"detector": "retinanet", "backbone": "wavevit_test", "heads": "narrow", **model}
    return DetectionTask(
        DetectionData(str(folder), **{**sizes, **(data or {})}),
        DetectionAugmentation(),
        DetectorSettings(**settings),
        0,
    )


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def test_boxes_reach_the_detector_as_they_are_in_half_precision(
    shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fabric would turn them to bf16, which has 8 bits: 1,333.4 would be 1,336."""
    task = make_task(shapes_folder)
    mixed = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    model = mixed.setup_module(task.build_model())
    task.set_train_mode(model.module)
    batch = next(task.train_batches(mixed, start=0, stop=1, accumulate=1, timeout_s=0))
    odd = torch.tensor([[3.3, 5.7, 60.1, 62.9]])
    batch.targets = [{"boxes": odd, "labels": torch.tensor([1])} for _ in batch.targets]
    seen: list[Tensor] = []

    def remember(batch: Any, targets: Any) -> dict[str, Tensor]:
        seen.extend(target["boxes"] for target in targets)
        return {"loss_box": torch.zeros((), requires_grad=True)}

    monkeypatch.setattr(model.module, "compute_losses", remember)
    task.loss(mixed, model, batch)
    assert len(seen) == 2
    for boxes in seen:
        assert torch.equal(boxes, odd)


class Oracle(nn.Module):
    """Finds what there is, in the order that evaluations ask for it."""

    def __init__(self, task: DetectionTask) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.answers = self._answers(task)

    def _answers(self, task: DetectionTask) -> Iterator[dict[str, Tensor]]:
        transform = detection_eval_transform(
            short_edge=task.data.short_edge,
            long_edge=task.data.long_edge,
            size_rule=task.data.size_rule,
        )
        for index in range(len(task.val_set)):
            target = transform(task.val_set.load(index)).target()
            target["scores"] = torch.ones(len(target["labels"]))
            if "masks" in target:
                target["masks"] = target["masks"].float()
            yield target

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [next(self.answers) for _ in images]


def test_what_is_right_in_the_resized_image_is_right_in_the_stored_one(
    shapes_folder: Path, fabric: Fabric
) -> None:
    """AP of boxes and masks that a faultless detector has, at another size and in batches."""
    sizes = {"short_edge": 160, "long_edge": 320, "eval_batch_size": 2}
    task = make_task(shapes_folder, data=sizes, detector="mask_rcnn")
    numbers = task.evaluate(fabric, Oracle(task))
    assert numbers["box_ap"] > 0.999
    assert numbers["mask_ap"] > 0.999
    assert numbers["score"] == numbers["box_ap"]
    assert task.result is not None
    assert task.result.num_images == 3
    # Of such a detector nothing is wrong, so that all examples are of the other kind.
    (_, hardest), (_, others) = choose_detection_examples(
        task.val_set, task.metrics.rows() if task.metrics else [], task.result.box
    )
    assert len(hardest) == 0
    captions = {f"{example.name}: {example.caption}" for example in others}
    assert "images/val/0.png: 3 right, 0 wrong, 0 missed" in captions


def test_mistakes_are_counted_and_come_first(shapes_folder: Path, fabric: Fabric) -> None:
    task = make_task(shapes_folder, data={"eval_batch_size": 3}, detector="mask_rcnn")
    oracle = Oracle(task)
    answers = list(oracle.answers)
    answers[0]["labels"][0] = (answers[0]["labels"][0] + 1) % 9  # wrong, and so missed
    oracle.answers = iter(answers)
    task.evaluate(fabric, oracle)
    assert task.result is not None
    assert task.metrics is not None
    (_, hardest), (_, others) = choose_detection_examples(
        task.val_set, task.metrics.rows(), task.result.box
    )
    assert [(e.name, e.caption) for e in hardest] == [
        ("images/val/0.png", "2 right, 1 wrong, 1 missed")
    ]
    assert [(e.name, e.caption) for e in others] == [
        ("images/val/2.png", "1 right, 0 wrong, 0 missed")
    ]


def test_right_detections_are_drawn_before_wrong_ones_of_higher_scores(
    shapes_folder: Path, fabric: Fabric
) -> None:
    task = make_task(shapes_folder, detector="gfl")
    oracle = Oracle(task)
    answers = list(oracle.answers)
    first = answers[0]
    num_right = len(first["labels"])
    first["boxes"] = torch.cat([torch.tensor([[0.0, 0, 3, 3]]).repeat(40, 1), first["boxes"]])
    first["labels"] = torch.cat([first["labels"][:1].repeat(40), first["labels"]])
    first["scores"] = torch.cat([torch.full((40,), 1.0), torch.full((num_right,), 0.9)])
    oracle.answers = iter(answers)
    task.evaluate(fabric, oracle)
    assert task.result is not None
    assert task.metrics is not None
    (_, hardest), _ = choose_detection_examples(task.val_set, task.metrics.rows(), task.result.box)
    assert hardest[0].caption == "3 right, 40 wrong, 0 missed (of those found, 24 are drawn)"
    assert len(hardest[0].found) == 24
    np.testing.assert_allclose(
        np.sort(hardest[0].found.boxes_xyxy[:num_right], axis=0),
        np.sort(hardest[0].truth.boxes_xyxy, axis=0),
        atol=0.01,
    )


def test_best_f1_is_where_precision_and_recall_are_both_high() -> None:
    recall = recall_levels()
    precision = np.full((10, 101, 3), np.nan)
    precision[:, :, 0] = (recall <= 0.5) * 0.8
    precision[:, :, 1] = 0
    scores = np.full((10, 101, 3), np.nan)
    scores[:, :, 0] = 1 - recall
    scores[:, :, 1] = 0
    f1, threshold = best_f1(AveragePrecision({}, precision, scores))
    assert f1[0] == pytest.approx(2 * 0.8 * 0.5 / 1.3)
    assert threshold.tolist() == [0.5, 0.3, 0.3]
    assert f1[1] == 0
    assert np.isnan(f1[2])


def batch_norms(module: nn.Module) -> list[nn.Module]:
    return [each for each in module.modules() if isinstance(each, _BatchNorm)]


@pytest.mark.parametrize("mode", ["trained", "affine_frozen", "frozen"])
def test_what_is_frozen_stays_so_in_training_mode_also_when_synchronised(
    mode: str, shapes_folder: Path
) -> None:
    task = make_task(shapes_folder, batch_norm=mode, frozen_stages=1)
    model = convert_sync_batch_norm(task.build_model())
    model.eval()  # as an evaluation leaves it
    task.set_train_mode(model)
    assert model.training
    body = model.get_submodule("network.backbone.body")
    first = batch_norms(body.get_submodule("stages_0"))
    assert first
    assert not any(norm.training for norm in first)
    later = [norm for norm in batch_norms(body) if norm not in first]
    assert later
    assert {norm.training for norm in later} == {mode != "frozen"}
    assert {norm.weight.requires_grad for norm in later} == {mode == "trained"}
    assert all(isinstance(norm, SyncBatchNorm) for norm in later)


def test_held_out_images_are_the_same_for_the_same_seed(
    shapes_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "one"
    shutil.copytree(shapes_folder, root)
    (root / "annotations/instances_val.json").unlink()
    kept = {"keep_empty": True, "val_fraction": 0.5}
    splits = [make_task(root, data={**kept, "split_seed": s}).splits for s in (1, 1, 2)]
    names = [list(each.val.sample_ids()) for each in splits]
    assert names[0] == names[1] != names[2]
    assert splits[0].held_out
    everything = [*splits[0].train.sample_ids(), *names[0]]
    assert sorted(everything) == [f"images/train/{number}.png" for number in range(6)]


def test_fingerprints_tell_other_annotations(shapes_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "other"
    shutil.copytree(shapes_folder, root)
    before = make_task(shapes_folder).fingerprints()
    assert make_task(root).fingerprints() == before
    path = root / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    path.write_text(json.dumps(content))
    after = make_task(root).fingerprints()
    assert {name for name in after if after[name] != before[name]} == {"validation annotations"}


@pytest.mark.parametrize("name", NARROW_HEADS)
def test_narrow_heads_are_small(name: str) -> None:
    """The published ones have 8 to 80 million parameters."""
    with torch.device("meta"):
        detector = create_detector(name, "wavevit_test", num_classes=80, **NARROW_HEADS[name])
    assert sum(parameter.numel() for parameter in detector.parameters()) < 4e6


OPTIMIZERS = {
    "retinanet": {"lr": 1e-4, "weight_decay": 1e-4, "no_decay": []},
    "cascade_mask_rcnn": {"lr": 1e-4, "weight_decay": 0.05},
    "gfl": {"lr": 1e-4, "weight_decay": 0.05},
    "sparse_rcnn": {"lr": 2e-5, "weight_decay": 1e-4, "no_decay": []},
}
PUBLISHED_NO_DECAY = ["network.backbone.*.norm.*", "network.backbone.*.norm[12].*"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_are_decayed_as_in_the_official_runs(name: str, golden: Path) -> None:
    """Every trainable tensor is in the group that the official optimizer has it in."""
    content = json.loads((golden / "detection/optimizer_groups.json").read_text())
    groups = content[f"{name}_s"]
    facts = json.loads((golden / f"detection/{name}_s_seed0.json").read_text())
    shapes = {name: shape for name, shape, _ in facts["state_dict"]}
    with torch.device("meta"):
        detector = create_detector(name, "wavevit_s", num_classes=80)
    optim = Optimization(**{"no_decay": PUBLISHED_NO_DECAY, **OPTIMIZERS[name]})
    optimizer = optim.optimizer(detector, 16)
    name_of = {id(parameter): name for name, parameter in detector.named_parameters()}
    ours = {
        name_of[id(parameter)]: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert all(group["lr"] == pytest.approx(optim.lr) for group in groups)
    assert all(tuple(group["betas"]) == optim.betas for group in groups)
    decays = {each: group["weight_decay"] for group in groups for each in group["names"]}
    # Each tensor holds its own weight decay, so that it can be told under its new name.
    state = {each: torch.tensor(decay).expand(shapes[each]) for each, decay in decays.items()}
    theirs = {each: float(value.flatten()[0]) for each, value in our_state(detector, state).items()}
    trainable = {name for name, p in detector.named_parameters() if p.requires_grad}
    assert ours == pytest.approx({each: theirs[each] for each in trainable})
    assert sum(group["n_trainable_tensors"] for group in groups) == len(ours)


# fmt: off
PLAIN = [
    "train", "detection",
    "--detector", "atss",
    "--backbone", "wavevit_test",
    "--model.heads", "narrow",
    "--data.short-edge", "64",
    "--data.long-edge", "64",
    "--data.num-workers", "0",
    "--data.keep-empty", "true",
    "--augment.hflip", "0",
    "--optim.epochs", "1",
    "--optim.warmup-epochs", "0",
    "--optim.eps", "1e-5",  # Adam blows gradients of the size of rounding up to steps of lr
    "--trainer.log-every", "1",
    "--trainer.batch-norm", "sync",
    "--trainer.clip-grad", "1",
]
# fmt: on


@pytest.fixture(scope="module")
def runs(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of one process, the same of two, and the first one's end seen by two."""
    root = tmp_path_factory.mktemp("runs")
    words = [*PLAIN, "--data", str(shapes_folder)]
    two = {"arguments": [*words, "--data.batch-size", "1"], "processes": 2}
    scenarios = {
        "one": {"arguments": [*words, "--data.batch-size", "2"]},
        "two": two,
        "one, measured by two": two,
    }
    return run_all(scenarios, root, [root / "one", root / "two", root / "one"])


def test_two_processes_train_as_one_with_their_batch(runs: dict[str, Run]) -> None:
    """Images without objects among them: no parameter goes without a gradient."""
    one, two = runs["one"], runs["two"]
    assert (one.codes, two.codes) == ([[0]], [[0, 0]]), two.starts[0].stderr
    for ours, theirs in zip(one.log(), two.log(), strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_a_sharded_detector_trains_and_is_measured_like_a_whole_one(
    runs: dict[str, Run], shapes_folder: Path, tmp_path: Path
) -> None:
    """One process has fewer images to measure on than the other."""
    words = [*PLAIN, "--data", str(shapes_folder), "--data.batch-size", "1"]
    sharded = {"arguments": [*words, "--trainer.strategy", "fsdp"], "processes": 2}
    run = run_all({"": sharded}, tmp_path)[""]
    assert run.codes == [[0, 0]], run.starts[0].stderr
    for ours, theirs in zip(runs["two"].log(), run.log(), strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_two_processes_measure_as_one(runs: dict[str, Run]) -> None:
    """All numbers of the report, of images that two processes share unevenly."""
    run = runs["one, measured by two"]
    assert run.codes == [[0, 0]], run.starts[0].stderr
    report = (run.folder / "report.md").read_text()
    logged = runs["one"].log()[-1]
    assert f"| best box AP | {logged['box_ap']:.4f} (step 3) |" in report
    assert f"| AP at IoU 0.50 | {logged['box_ap50']:.4f} |" in report
