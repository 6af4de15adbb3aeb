"""Mask R-CNN against torchvision's, on the same weights: inference and a training step.

    python benchmarks/models/detection.py --csv benchmarks/results/detection_speed.csv

Both have a ResNet-50 with FPN, random weights copied from ours to theirs and scaled so that scores
spread as those of a trained network do: as many proposals, detections and masks in both. The two
take turns in every round, so that a noisy neighbour disturbs both alike. Times are medians with
the 20th and 80th percentile; `ratio` is the median of the time over torchvision's of that round.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from wavevit.cli.main import keep_freed_memory
from wavevit.detection.factory import create_detector
from wavevit.detection.mask_rcnn import MaskRCNN
from wavevit.profiling.timing import (
    Summary,
    append_rows,
    environment,
    paired_ratio,
    time_in_turns,
)

NUM_CLASSES = 80
PEERS = ("torchvision", "wavevit")


def ours() -> MaskRCNN:
    """Our Mask R-CNN, every parameter trained; scores and boxes spread."""
    model = create_detector("mask_rcnn", "resnet50", num_classes=NUM_CLASSES, batch_norm="trained")
    assert isinstance(model, MaskRCNN)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts residual branches at zero
    for layer, gain in (
        (model.network.rpn_head.conv, 1.0),
        (model.network.rpn_head.objectness, 2.0),
        (model.network.rpn_head.deltas, 0.2),
        (model.box_head.fc_cls, 4.0),
        (model.box_head.fc_reg, 0.5),
    ):
        nn.init.normal_(layer.weight, std=gain * layer.weight[0].numel() ** -0.5)
    return model


def theirs(model: MaskRCNN) -> nn.Module:
    """torchvision's, with the weights of ours."""
    peer = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1)
    peer.backbone.body.load_state_dict(model.network.backbone.body.state_dict(), strict=True)
    pairs = [
        *zip(model.network.neck.laterals, peer.backbone.fpn.inner_blocks, strict=True),
        *zip(model.network.neck.outputs, peer.backbone.fpn.layer_blocks, strict=True),
        (model.network.rpn_head.conv, peer.rpn.head.conv[0]),
        (model.network.rpn_head.objectness, peer.rpn.head.cls_logits),
        (model.network.rpn_head.deltas, peer.rpn.head.bbox_pred),
        *zip(
            model.box_head.fcs,
            (peer.roi_heads.box_head.fc6, peer.roi_heads.box_head.fc7),
            strict=True,
        ),
        *zip(model.mask_head.convs, peer.roi_heads.mask_head, strict=True),
        (model.mask_head.upsample, peer.roi_heads.mask_predictor.conv5_mask),
    ]
    with torch.no_grad():
        for source, target in pairs:
            target = target[0] if isinstance(target, nn.Sequential) else target
            target.weight.copy_(source.weight)
            target.bias.copy_(source.bias)
        # The background is our last class and their first.
        predictor = peer.roi_heads.box_predictor
        for source, target in (
            (model.box_head.fc_cls, predictor.cls_score),
            (model.box_head.fc_reg, predictor.bbox_pred),
            (model.mask_head.logits, peer.roi_heads.mask_predictor.mask_fcn_logits),
        ):
            rows = len(target.weight) // (NUM_CLASSES + 1)
            for mine, their in ((source.weight, target.weight), (source.bias, target.bias)):
                their[rows:].copy_(mine[: NUM_CLASSES * rows])
                if len(mine) == len(their):
                    their[:rows].copy_(mine[-rows:])
    return peer


def example(size: tuple[int, int], batch: int, num_objects: int) -> tuple[list[Tensor], list]:
    """Images of blocks and noise, and boxes with masks, from one seed."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    images, targets = [], []
    for _ in range(batch):
        coarse = torch.rand(1, 3, height // 16, width // 16, generator=generator)
        coarse = nn.functional.interpolate(coarse, size=size)[0]
        images.append((coarse + torch.rand(3, height, width, generator=generator)) / 2)
        sides = torch.rand(num_objects, 2, generator=generator) * 0.3 + 0.05
        corner = torch.rand(num_objects, 2, generator=generator) * (1 - sides)
        boxes = torch.cat([corner, corner + sides], 1) * torch.tensor([width, height] * 2)
        masks = torch.zeros(num_objects, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        labels = torch.randint(NUM_CLASSES, (num_objects,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    return images, targets


def work(
    mode: str, model: nn.Module, images: list[Tensor], targets: list, is_peer: bool
) -> Callable[[], None]:
    """One call of what is measured."""
    if mode == "inference":
        model.eval()

        def infer() -> None:
            with torch.inference_mode():
                model(images)

        return infer
    model.train()
    if is_peer:
        targets = [t | {"labels": t["labels"] + 1} for t in targets]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modes", nargs="+", default=["inference", "training"])
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1216], help="rows and columns")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--objects", type=int, default=8, help="objects of an image in training")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=1, help="rounds that are not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--csv", type=Path, help="file to append rows to")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    known = environment(options.device)
    rows: list[dict[str, object]] = []
    for mode in options.modes:
        torch.manual_seed(0)
        model = ours()
        models = {"torchvision": theirs(model), "wavevit": model}
        images, targets = example(tuple(options.size), options.batch_size, options.objects)
        images = [image.to(options.device) for image in images]
        targets = [{k: v.to(options.device) for k, v in t.items()} for t in targets]
        calls = {
            name: work(mode, m.to(options.device), images, targets, name == "torchvision")
            for name, m in models.items()
        }
        found = {}
        if mode == "inference":
            with torch.inference_mode():
                found = {name: len(m(images)[0]["boxes"]) for name, m in models.items()}
        seconds = time_in_turns(calls, options.rounds, options.device, options.warm_up)
        for name, times in seconds.items():
            summary = Summary.of(times)
            rows.append(
                {
                    **{key: known[key] for key in ("date", "device", "torch")},
                    "torchvision": torchvision.__version__,
                    "wavevit": known["wavevit"],
                    "mode": mode,
                    "model": f"{name} Mask R-CNN resnet50",
                    "dtype": "float32",
                    "batch": options.batch_size,
                    "size": "x".join(map(str, options.size)),
                    "detections": found.get(name, ""),
                    "seconds": round(summary.median, 3),
                    "seconds_p20": round(summary.p20, 3),
                    "seconds_p80": round(summary.p80, 3),
                    "ratio": round(paired_ratio(times, seconds["torchvision"]), 3),
                }
            )
            print(rows[-1], flush=True)
    if options.csv:
        append_rows(options.csv, rows)


if __name__ == "__main__":
    main()
