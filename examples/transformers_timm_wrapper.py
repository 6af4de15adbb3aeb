"""A Wave-ViT inside Hugging Face transformers, by its wrappers for timm. Works offline.

Shows a classifier from a hub folder (`AutoModelForImageClassification`, with its labels and its
preprocessing), the same saved and loaded again by transformers, hidden states, and a backbone for
transformers' detectors and segmenters (`TimmBackbone`). The weights are random here; a folder of
your own comes from `wavevit hub-folder runs/mine FOLDER`.

    pip install wavevit transformers
    python examples/transformers_timm_wrapper.py
    python examples/transformers_timm_wrapper.py --folder FOLDER
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    TimmBackbone,
    TimmBackboneConfig,
)

import wavevit  # noqa: F401, registers the models with timm
from wavevit.hub.folder import save_hub_folder
from wavevit.models.card import ModelCard, save_model


def make_folder(folder: Path, model: str = "wavevit_nano") -> Path:
    """A hub folder of a network with random weights and three classes."""
    torch.manual_seed(0)
    names = ["cat", "dog", "horse"]
    card = ModelCard(model, {"num_classes": len(names)}, class_names=names, image_size=(96, 96))
    model_file = folder.with_suffix(".safetensors")
    save_model(model_file, card.build().state_dict(), card)
    save_hub_folder(model_file, folder)
    return folder


def load(folder: Path) -> tuple[torch.nn.Module, AutoImageProcessor]:
    """The classifier, in evaluation mode, and what prepares its pictures."""
    classifier = AutoModelForImageClassification.from_pretrained(folder)
    return classifier.eval(), AutoImageProcessor.from_pretrained(folder)


def backbone(model: str = "wavevit_s", out_indices: tuple[int, ...] = (1, 2, 3)) -> TimmBackbone:
    """The network that transformers' detectors and segmenters take: maps instead of logits."""
    return TimmBackbone(TimmBackboneConfig(backbone=model, out_indices=out_indices)).eval()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="hub folder; default: a network made here")
    parser.add_argument("--image", type=Path, help="picture; default: noise")
    options = parser.parse_args()

    if options.image is None:
        noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
    else:
        image = Image.open(options.image).convert("RGB")
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or make_folder(Path(place) / "mine")
        classifier, processor = load(folder)
        pixels = processor(image, return_tensors="pt")
        outputs = classifier(**pixels, output_hidden_states=True)
        for probability, label in zip(*outputs.logits.softmax(1)[0].topk(3), strict=True):
            print(f"{classifier.config.id2label[label.item()]:>10} {probability:.3f}")
        print("hidden states:", [tuple(state.shape) for state in outputs.hidden_states])

        classifier.save_pretrained(Path(place) / "again")
        again, _ = load(Path(place) / "again")
        difference = (again(**pixels).logits - outputs.logits).abs().max()
        print(f"saved and loaded again by transformers: logits differ by {difference:.1e}")

    maps = backbone()(torch.rand(1, 3, 96, 128)).feature_maps
    print("backbone of wavevit_s:", [tuple(features.shape) for features in maps])


if __name__ == "__main__":
    main()
