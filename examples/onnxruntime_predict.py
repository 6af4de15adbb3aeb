"""A classifier without PyTorch: numpy, Pillow and ONNX Runtime are all that this needs.

Reads the network of `wavevit export --format onnx`. How to prepare a picture and what the classes
are called is written inside the file, so this script is the same for every classifier.

    pip install numpy Pillow onnxruntime
    python examples/onnxruntime_predict.py EXPORT/network.onnx photo.jpg more/*.jpg
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Classifier:
    """A network in a file, with the preprocessing that it was trained with.

    Args:
        path: The ONNX file, or the folder of an export, which has a network.onnx.
    """

    def __init__(self, path: Path) -> None:
        path = path / "network.onnx" if path.is_dir() else path
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        if "wavevit" not in metadata:
            raise SystemExit(f"{path} does not say how to prepare pictures: export it with wavevit")
        self.card = json.loads(metadata["wavevit"])
        self.input_name = self.session.get_inputs()[0].name

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """The middle of a picture as the network takes it: (3, H, W), normalised."""
        image = ImageOps.exif_transpose(image).convert("RGB")
        H, W = self.card["image_size"]
        # As evaluation does: the short side to the size over crop_pct, then the centre.
        scale = max(
            math.floor(side / self.card["crop_pct"]) / length
            for side, length in ((H, image.height), (W, image.width))
        )
        # 1e-6: a side that fits exactly must not lose a pixel to rounding.
        size = int(image.width * scale + 1e-6), int(image.height * scale + 1e-6)
        image = image.resize(size, INTERPOLATIONS[self.card["interpolation"]])
        left, top = round((image.width - W) / 2), round((image.height - H) / 2)
        pixels = np.asarray(image.crop((left, top, left + W, top + H)), np.float32) / 255
        mean, std = (np.array(self.card[name], np.float32) for name in ("mean", "std"))
        return ((pixels - mean) / std).transpose(2, 0, 1)

    def __call__(self, images: list[Image.Image]) -> NDArray[np.float32]:
        """Probabilities (B, K) of the classes for so many pictures."""
        batch = np.stack([self.prepare(image) for image in images])
        (logits,) = self.session.run(None, {self.input_name: batch})
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", type=Path, help="ONNX file, or folder of an export")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--top", type=int, default=3, help="classes to show; default: 3")
    options = parser.parse_args()

    classifier = Classifier(options.network)
    names = classifier.card["class_names"]
    for path in options.images:
        with Image.open(path) as image:
            (probabilities,) = classifier([image])
        best = probabilities.argsort()[::-1][: options.top]
        found = (f"{names[label] if names else label} {probabilities[label]:.4f}" for label in best)
        print(f"{path}: {', '.join(found)}")


if __name__ == "__main__":
    main()
