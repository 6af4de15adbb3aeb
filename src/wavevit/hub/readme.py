"""The model card of a hub folder: ``README.md`` with a YAML header that the hub reads."""

from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

import wavevit
from wavevit.hub.results import Results
from wavevit.models.wave_vit import VARIANTS

PIPELINES = {
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
}
_SHOWN_CLASSES = 1000

# What the hub calls a number, and what people do; others keep their names.
_METRICS = {
    "top1": ("accuracy", "top-1 accuracy"),
    "top5": ("accuracy", "top-5 accuracy"),
    "mean_class_accuracy": ("accuracy", "mean accuracy of the classes"),
    "ece": ("ece", "expected calibration error"),
    "mean_iou": ("mean_iou", "mean IoU"),
}

_CLASSIFIER = """
With [timm](https://github.com/huggingface/pytorch-image-models):

```python
import timm
import torch
from PIL import Image
{register}
model = timm.create_model("hf-hub:USER/{name}", pretrained=True).eval()  # or "local-dir:FOLDER"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.open("photo.jpg").convert("RGB")
with torch.inference_mode():
    probabilities = model(transform(image)[None]).softmax(1)[0]
for label in probabilities.argsort(descending=True)[:5].tolist():
    print(model.pretrained_cfg["label_names"][label], f"{{probabilities[label]:.3f}}")
```

`num_classes=10` gives it a new head to fine-tune, `features_only=True` makes it a backbone.

With transformers:

```python
from transformers import pipeline
{register}
print(pipeline("image-classification", "USER/{name}")("photo.jpg"))
```
"""

_PREDICTOR = """
```python
from huggingface_hub import snapshot_download
from torchvision.io import decode_image
from wavevit.{task}.inference import {predictor}

predictor = {predictor}.load(snapshot_download("USER/{name}"))
print(predictor([decode_image("photo.jpg", "RGB")])[0])
```
"""

_COMMAND_LINE = """
{after}

```
pip install wavevit
hf download USER/{name} --local-dir {name}
wavevit predict --checkpoint {name} IMAGES --draw pictures
```
"""


def write_readme(
    name: str,
    card: Any,
    results: Results,
    *,
    license: str | None = None,
    pictures: Mapping[str, str] | None = None,
) -> str:
    """The whole text of ``README.md``.

    Args:
        name: Of the model.
        card: Of the model.
        results: What was measured, and how it was trained.
        license: Identifier of the hub, such as "apache-2.0"; None states none.
        pictures: What the pictures in the folder show, by file name.
    """
    parts = [
        f"---\n{_header(name, card, results, license)}\n---",
        f"# {name}",
        _opening(card, results),
        _results(results),
        *(f"![{what}]({file})" for file, what in (pictures or {}).items()),
        "## Use it",
        _usage(name, card),
        *_classes(card.class_names),
        *_training(results),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def network_name(card: Any) -> str:
    """What the model is, such as "wavevit_s" or "mask_rcnn on wavevit_s".

    Args:
        card: Of the model.
    """
    if card.task == "classification":
        return str(card.model)
    return f"{card.detector if card.task == 'detection' else card.segmenter} on {card.backbone}"


def _is_ours(card: Any) -> bool:
    return getattr(card, "model", None) in VARIANTS or getattr(card, "backbone", None) in VARIANTS


def _header(name: str, card: Any, results: Results, license: str | None) -> str:
    is_classifier = card.task == "classification"
    tags = [PIPELINES[card.task]]
    tags += ["timm", "transformers"] if is_classifier else ["wavevit"]
    tags += ["wave-vit"] if _is_ours(card) else []
    evaluations = [
        EvalResult(
            task_type=PIPELINES[card.task],
            dataset_type=results.dataset if results.dataset == "unknown" else "custom",
            dataset_name=results.dataset,
            dataset_split=results.split,
            metric_type=_METRICS.get(key, (key,))[0],
            metric_name=_shown_name(key),
            metric_value=round(value, 6),
        )
        for key, value in results.metrics.items()
    ]
    data = ModelCardData(
        license=license,
        library_name="timm" if is_classifier else "wavevit",
        pipeline_tag=PIPELINES[card.task],
        tags=tags,
        model_name=name if evaluations else None,
        eval_results=evaluations or None,
    )
    return str(data.to_yaml())


def _shown_name(key: str) -> str:
    known = _METRICS.get(key)
    if known is not None:
        return known[1]
    words = key.replace("_ap", "_AP").replace("_", " ")
    return words.replace("iou", "IoU").replace("AP AP", "AP")


def _opening(card: Any, results: Results) -> str:
    classes = f" of {len(card.class_names)} classes" if card.class_names else ""
    kind = {"classification": "classifier", "detection": "detector", "segmentation": "segmenter"}
    trained = f", trained on {results.dataset}" if results.settings else ""
    lines = f"A {kind[card.task]}{classes}: `{network_name(card)}`{trained}."
    if card.task == "classification":
        height, width = card.image_size
        lines += f" Its input has {height} x {width} pixels."
    if _is_ours(card):
        lines += " Wave-ViT: [arXiv 2207.04978](https://arxiv.org/abs/2207.04978)."
    return lines


def _results(results: Results) -> str:
    if not results.metrics:
        return "No results have been measured."
    images = "" if results.num_images is None else f", {results.num_images} images"
    rows = [f"| {_shown_name(key)} | {value:.4f} |" for key, value in results.metrics.items()]
    measured = f"Measured on {results.dataset} ({results.split}{images}):"
    return "\n".join(["## Results", "", measured, "", "| | |", "|---|---:|", *rows])


def _usage(name: str, card: Any) -> str:
    if card.task == "classification":
        register = "import wavevit  # registers the network\n" if _is_ours(card) else ""
        return (_CLASSIFIER + _COMMAND_LINE).format(
            name=name, register=register, after="On the command line:"
        )
    predictor = "DetectionPredictor" if card.task == "detection" else "SegmentationPredictor"
    return (_PREDICTOR + _COMMAND_LINE).format(
        name=name, task=card.task, predictor=predictor, after="Or on the command line:"
    )


def _classes(names: list[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(" ".join(str(name).split()) for name in names[:_SHOWN_CLASSES])
    more = ", ..." if len(names) > _SHOWN_CLASSES else ""
    return ["## Classes", shown + more]


def _training(results: Results) -> list[str]:
    if not results.settings:
        return []
    settings = yaml.safe_dump(results.settings, sort_keys=False, default_flow_style=None)
    summary = f"Settings of the run, for `wavevit train` {wavevit.__version__}"
    return [
        "## Training",
        f"<details><summary>{summary}</summary>\n\n```yaml\n{settings}```\n\n</details>",
    ]
