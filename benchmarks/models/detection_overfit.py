"""Teaches each detector four images by heart, which shows that every part of it learns.

    python benchmarks/models/detection_overfit.py --data COCO_DIR --detectors gfl mask_rcnn \
        [--csv benchmarks/results/detection_overfit.csv]

The images are the first four of the training split with two to eight objects and no crowd. Each
step sees all of them, unchanged and at a small size; heads are narrow and the backbone starts from
nothing.
"""

import argparse
import csv
import datetime
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch

from wavevit.cli.main import keep_freed_memory
from wavevit.data.detection.dataset import DetectionDataset
from wavevit.data.detection.files import read_detection
from wavevit.data.detection.loader import DetectionEvalView, collate_detections
from wavevit.data.detection.resize import restore_boxes, restore_masks
from wavevit.data.detection.transforms import detection_eval_transform
from wavevit.detection import create_detector
from wavevit.detection.detector import Detector
from wavevit.metrics.detection import DetectionMetrics

DENSE = {"fpn_channels": 64, "head_channels": 64, "num_tower_convs": 2}
TWO_STAGE = {
    "fpn_channels": 64,
    "fc_channels": 256,
    "mask_channels": 64,
    "num_mask_convs": 2,
    "num_anchor_samples": 128,
    "num_region_samples": 64,
    "num_proposals_train": 200,
    "num_proposals_test": 200,
}
NARROW = {
    "retinanet": DENSE,
    "atss": DENSE,
    "gfl": DENSE,
    "mask_rcnn": TWO_STAGE,
    "cascade_mask_rcnn": {**TWO_STAGE, "num_box_convs": 1, "box_channels": 64},
    "sparse_rcnn": {"fpn_channels": 64, "num_proposals": 50},
}


def choose(data: Path) -> DetectionDataset:
    annotations = read_detection(str(data), "train", with_masks=True)
    chosen = []
    for index in range(len(annotations)):
        objects = annotations.objects(index)
        if 2 <= len(objects.boxes) <= 8 and not objects.crowd.any():
            chosen.append(index)
    return DetectionDataset(annotations.subset(np.array(chosen[:4])), with_masks=True)


def evaluate(detector: Detector, view: DetectionEvalView, dataset: DetectionDataset) -> str:
    metrics = DetectionMetrics(
        dataset.to_coco(), category_ids=dataset.category_ids, with_masks=detector.with_masks
    )
    detector.eval()
    items = [view[index] for index in range(len(dataset))]
    batch = collate_detections(items).to(torch.device("cpu"))
    with torch.no_grad():
        found = detector(batch.images)
    for index, image, detection, original in zip(
        batch.indices.tolist(), batch.images, found, batch.original_sizes, strict=True
    ):
        size = tuple(image.shape[-2:])
        boxes = restore_boxes(detection["boxes"], size, original)
        masks = restore_masks(detection["masks"], original) if detector.with_masks else None
        metrics.update(
            dataset.image_id(index), boxes, detection["labels"], detection["scores"], masks
        )
    return metrics.compute().summary()


def overfit(name: str, dataset: DetectionDataset, options: argparse.Namespace) -> dict[str, object]:
    torch.manual_seed(options.seed)
    detector = create_detector(
        name,
        options.backbone,
        num_classes=len(dataset.class_names),
        batch_norm="trained",
        **NARROW[name],
    )
    transform = detection_eval_transform(
        short_edge=options.size, long_edge=math.ceil(options.size * 1.7)
    )
    view = DetectionEvalView(dataset, transform)
    batch = collate_detections([view[i] for i in range(len(dataset))]).to(torch.device("cpu"))
    optimizer = torch.optim.AdamW(detector.parameters(), lr=options.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.steps, pct_start=0.1
    )
    started = time.process_time()
    for step in range(1, options.steps + 1):
        detector.train()
        losses = detector(batch.images, batch.targets)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), options.clip)
        optimizer.step()
        schedule.step()
        if step % options.report == 0 or step == options.steps:
            summary = evaluate(detector, view, dataset)
            minutes = (time.process_time() - started) / 60
            print(
                f"{name} step {step}: loss {loss.item():.4f} "
                + " ".join(f"{key} {summary[key]:.3f}" for key in summary if key.endswith("_ap"))
                + f" {minutes:.1f} CPU minutes",
                flush=True,
            )
            if minutes > options.minutes:
                break
    return {
        "date": datetime.date.today().isoformat(),
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "detector": name,
        "backbone": options.backbone,
        "parameters_m": round(sum(p.numel() for p in detector.parameters()) / 1e6, 2),
        "short_edge": options.size,
        "steps": step,
        "lr": options.lr,
        "seed": options.seed,
        "cpu_minutes": round(minutes, 2),
        "box_ap": round(summary["box_ap"], 4),
        "mask_ap": round(summary["mask_ap"], 4) if "mask_ap" in summary else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="coco_mini80_clean, unpacked")
    parser.add_argument("--detectors", nargs="+", choices=list(NARROW), default=list(NARROW))
    parser.add_argument("--backbone", default="wavevit_nano")
    parser.add_argument("--size", type=int, default=256, help="short edge, pixels")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--clip", type=float, default=10.0)
    parser.add_argument("--report", type=int, default=50, help="steps between evaluations")
    parser.add_argument("--minutes", type=float, default=15, help="most CPU minutes each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, help="file to append rows to")
    options = parser.parse_args()
    keep_freed_memory()
    dataset = choose(options.data)
    for name in options.detectors:
        row = overfit(name, dataset, options)
        print(row, flush=True)
        if options.csv is not None:
            new = not options.csv.exists()
            with options.csv.open("a", newline="") as file:
                writer = csv.DictWriter(file, row)
                if new:
                    writer.writeheader()
                writer.writerow(row)


if __name__ == "__main__":
    main()
