"""Exports every family of models in every format and compares predictions on real images.

    python benchmarks/models/export.py --images DIR --families gfl upernet --formats onnx torch \
        --csv benchmarks/results/export_check.csv --docs docs/export.md

What is run is what `wavevit export --check` runs: each exported model in its own runtime, on images
as they are, with all pre- and post-processing. Weights are those of a seed, with the last layer of
classes scaled so that its outputs on the first image have a standard deviation of 2: scores then
differ between objects, classes and pixels, as after training. Sparse R-CNN's stages, which move
the boxes of those before, make a tenth of their random steps: whole ones multiply roundings. Rows
are appended to the CSV; the table of the page is written anew from the latest row of each family
and format.
"""

import argparse
import csv
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wavevit.cli.export_check import compare, load_subject
from wavevit.cli.main import keep_freed_memory
from wavevit.detection.card import DetectorCard
from wavevit.detection.dynamic_head import DynamicHead
from wavevit.export.exporting import AnyCard, export_model
from wavevit.export.formats import FORMATS
from wavevit.models.card import ModelCard, save_model
from wavevit.profiling.timing import append_rows, environment, figures
from wavevit.segmentation.card import SegmenterCard

BEGIN, END = "<!-- export check: begin -->", "<!-- export check: end -->"
NUM_CLASSES = 10
DENSE = {"fpn_channels": 64, "head_channels": 64, "num_tower_convs": 2}
REGIONS = {"fpn_channels": 64, "fc_channels": 128, "mask_channels": 64, "num_mask_convs": 2}
DETECTORS: dict[str, dict[str, Any]] = {
    "retinanet": DENSE,
    "atss": DENSE,
    "gfl": DENSE,
    "mask_rcnn": REGIONS,
    "cascade_mask_rcnn": {**REGIONS, "num_box_convs": 2, "box_channels": 64},
    "sparse_rcnn": {"fpn_channels": 64, "num_proposals": 50, "num_stages": 3},
}
FAMILIES = ("classifier", *DETECTORS, "upernet")
BOX_STEP = 0.1
CLASS_LAYERS = ("cls_logits", "objectness", "fc_cls", "classifier", "head", "logits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder with images")
    parser.add_argument("--num-images", type=int, default=8)
    parser.add_argument("--backbone", default="wavevit_nano")
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--short-edge", type=int, default=256, help="of detectors' images, pixels")
    parser.add_argument("--csv", type=Path, required=True, help="file to append rows to")
    parser.add_argument("--docs", type=Path, help="page whose table is written")
    options = parser.parse_args()
    keep_freed_memory()
    images = [str(path) for path in sorted(options.images.rglob("*.jp*g"))[: options.num_images]]
    if not images:
        parser.error(f"no .jpg in {options.images}")
    with tempfile.TemporaryDirectory() as folder:
        for family in options.families:
            checkpoint = make(family, options, images[0], Path(folder) / f"{family}.safetensors")
            for form in options.formats:
                row = check(checkpoint, form, images, Path(folder) / f"{family}_{form}")
                named = {"family": family, "backbone": options.backbone, "format": form}
                append_rows(options.csv, [{**environment("cpu"), **named, **row}])
                print(f"{family} {form}: {row}", flush=True)
    if options.docs:
        write_table(options.csv, options.docs)


def make(family: str, options: argparse.Namespace, image: str, path: Path) -> Path:
    """A model file with weights of a seed, its outputs spread."""
    card = card_of(family, options)
    torch.manual_seed(0)
    model = card.build()
    save_model(path, model.state_dict(), card)
    subject = load_subject(path)
    for module in subject.network.modules():
        if isinstance(module, DynamicHead):
            module.fc_reg.weight.data.mul_(BOX_STEP)
    layers = [
        module
        for name, module in subject.network.named_modules()
        if name.rpartition(".")[2] in CLASS_LAYERS and isinstance(module, nn.Conv2d | nn.Linear)
    ]
    handles = [layer.register_forward_hook(Spread()) for layer in layers]
    compare(subject, subject, [image])
    for handle in handles:
        handle.remove()
    save_model(path, subject.network.state_dict(), card)
    return path


class Spread:
    """A hook that scales a layer at its first call, for outputs with a standard deviation of 2."""

    def __init__(self) -> None:
        self._done = False

    @torch.no_grad()
    def __call__(self, layer: Any, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        if self._done:
            return outputs
        self._done = True
        layer.weight.mul_(2 / float(outputs.std()))
        return layer(*inputs)


def card_of(family: str, options: argparse.Namespace) -> AnyCard:
    names = [f"class {i}" for i in range(NUM_CLASSES)]
    if family == "upernet":
        arguments = {"channels": 64, "auxiliary": False}
        return SegmenterCard(family, options.backbone, arguments, names, short_edge=256)
    if family in DETECTORS:
        ids = list(range(1, NUM_CLASSES + 1))
        edges = {"short_edge": options.short_edge, "long_edge": 2 * options.short_edge}
        return DetectorCard(family, options.backbone, DETECTORS[family], names, ids, **edges)
    return ModelCard(options.backbone, {"num_classes": NUM_CLASSES}, class_names=names)


def check(checkpoint: Path, form: str, images: list[str], target: Path) -> dict[str, object]:
    """Exports a model and compares it."""
    subject = load_subject(checkpoint, device="cpu")
    started = time.perf_counter()
    export_model(subject.network, subject.card, target, form)
    seconds = time.perf_counter() - started
    found = compare(subject, load_subject(target), images)
    megabytes = sum(file.stat().st_size for file in target.iterdir()) / 1e6
    return {
        "images": len(images),
        "passed": found.passed,
        "numbers": found.text,
        "export_s": figures(seconds),
        "megabytes": figures(megabytes),
    }


def write_table(table: Path, page: Path) -> None:
    """Writes the latest rows between the page's markers."""
    with open(table, encoding="utf-8", newline="") as file:
        rows = {(row["family"], row["format"]): row for row in csv.DictReader(file)}
    lines = ["| model | format | passed | on the images |", "|---|---|---|---|"]
    for family, form in itertools.product(FAMILIES, FORMATS):
        row = rows.get((family, form))
        if row is None:
            lines.append(f"| {family} | {form} | not run yet | |")
            continue
        passed = "yes" if row["passed"] == "True" else "**no**"
        lines.append(f"| {family}, {row['backbone']} | {form} | {passed} | {row['numbers']} |")
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
