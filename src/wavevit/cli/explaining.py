"""``wavevit predict --explain``: pictures of what a classifier looks at."""

from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from wavevit.cli.inference import Classifier
from wavevit.cli.picture_folders import PictureFolder
from wavevit.cli.prediction_files import ImageRecord
from wavevit.data.transforms import eval_view
from wavevit.explain.attention import class_token_attention
from wavevit.explain.grad_cam import grad_cam
from wavevit.explain.stages import stage_map

Method = Literal["grad-cam", "attention"]


class Explainer:
    """Makes the picture of an image and its record, in fp32; one at a time.

    Args:
        classifier: The model.
        method: "grad-cam" for the most probable class, or the "attention" of the class token.
        stage: Of Grad-CAM; the last one when None.

    Raises:
        ValueError: The method does not go with this model, or a stage that it has not.
    """

    def __init__(self, classifier: Classifier, method: Method, stage: int | None) -> None:
        if method == "attention" and stage is not None:
            raise ValueError(
                "--explain-stage goes with --explain-method grad-cam: the class token looks at the "
                "last stage only"
            )
        self._classifier = classifier
        self._transform = classifier.transform()
        self._method = method
        self._stage = -1 if stage is None else stage
        if method == "grad-cam":
            self._stride = stage_map(classifier.model, self._stage).stride
        # Tried out before any work, on noise: of a plain picture nothing might be seen.
        noise = torch.rand(1, 3, *classifier.card.image_size, generator=torch.Generator())
        self._heat(noise, 0)

    def __call__(self, image: Image.Image, record: ImageRecord) -> Image.Image:
        """The picture.

        Args:
            image: As it was read.
            record: What was found in it.
        """
        # Here, because matplotlib takes as long to import as many images take to classify.
        from wavevit.pictures.heat_maps import explained_picture

        card = self._classifier.card
        best = record.predictions[0]
        heat = self._heat(self._transform(image)[None], best.index).cpu().numpy()
        caption = (
            "attention of the class token"
            if self._method == "attention"
            else f"Grad-CAM at stride {self._stride}: {best.label}"
        )
        box = eval_view(image.size, card.image_size, crop_pct=card.crop_pct)
        predictions = [(p.label, p.probability) for p in record.predictions]
        return explained_picture(image, heat, caption, predictions, box)

    def _heat(self, pixels: Tensor, index: int) -> Tensor:
        """``(h, w)`` of normalised pixels ``(1, 3, H, W)`` and a class."""
        model = self._classifier.model
        if self._method == "attention":
            return class_token_attention(model, pixels)[0].mean(dim=0)
        return grad_cam(model, pixels, index, self._stage)[0]


def explanation_folder(
    folder: Path,
    base: str,
    overwrite: bool,
    classifier: Classifier,
    method: Method | None,
    stage: int | None,
) -> PictureFolder:
    """Where the pictures go.

    Args:
        folder: As given.
        base: Absolute folder that places are relative to.
        overwrite: Whether existing pictures may be replaced.
        classifier: The model.
        method: Grad-CAM when None.
        stage: Of Grad-CAM; the last one when None.

    Raises:
        ValueError: As of `Explainer`.
    """
    explainer = Explainer(classifier, method or "grad-cam", stage)
    return PictureFolder(folder, base, overwrite, explainer, option="--explain")
