"""A trained classifier ready to run, for the commands that evaluate and predict.

Shape legend: B images, H rows, W columns, K classes.
"""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from wavevit.cli.exported import check_eager, exported_model
from wavevit.data.transforms import Transform, eval_transform
from wavevit.models.card import ModelCard, create_model
from wavevit.models.runtimes import Forward, Runtime, prepare, with_runtime
from wavevit.models.weights import load_model, load_weights

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]

_AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Classifier:
    """A network in evaluation mode and how to feed it.

    Attributes:
        model: The network, on `device`.
        card: Names of its classes (perhaps none) and preparation of its input.
        num_classes: K.
        device: Where it runs.
        precision: Of the network's inside.
        forward: A compiled form of the network that is run in its place.
    """

    model: nn.Module
    card: ModelCard
    num_classes: int
    device: torch.device
    precision: Precision
    forward: Forward | None = None

    def transform(self) -> Transform:
        """The preparation of one image: RGB picture to float32 (3, H, W)."""
        return eval_transform(
            self.card.image_size,
            crop_pct=self.card.crop_pct,
            interpolation=self.card.interpolation,
            mean=self.card.mean,
            std=self.card.std,
        )

    def logits(self, images: Tensor) -> Tensor:
        """Float32 logits (B, K) on the CPU of normalised images.

        The kernels are the same at every call: no benchmarking, no TF32, no non-deterministic ones.

        Args:
            images: (B, 3, H, W) float32, on any device.
        """
        dtype = _AUTOCAST_TYPES.get(self.precision, torch.bfloat16)
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            ),
            torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32"),
        ):
            logits: Tensor = (self.forward or self.model)(images.to(self.device))
        return logits.float().cpu()


def load_classifier(
    checkpoint: Path,
    *,
    device: Device,
    precision: Precision,
    image_size: int | None = None,
    model: str | None = None,
    num_classes: int | None = None,
    runtime: Runtime = "eager",
) -> Classifier:
    """A classifier of a model file, a run directory, an export or plain weights; tried out.

    Args:
        checkpoint: Model file, run directory or exported model; with `model`, any file with
            weights.
        device: "auto" takes CUDA where there is some.
        precision: Of the network's inside.
        image_size: Rows and columns of the input instead of the model file's, pixels.
        model: timm name of the network, for weights that do not say what they are for.
        num_classes: Its number of classes; the model's usual one when None.
        runtime: How the network is run; all but "eager" are built at the first batch.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No CUDA, a runtime that does not run here, weights that do not fit or lack the
            classifier, or a network that does not take such images.
    """
    exported = exported_model(checkpoint, task="classification", device=device, precision=precision)
    place = find_device(device) if exported is None else exported.device
    if exported is not None:
        if model is not None or num_classes is not None:
            raise ValueError("an exported model knows its network; leave out --model")
        check_eager(checkpoint, runtime)
        assert isinstance(exported.card, ModelCard)
        network, card = exported.model, exported.card
    elif model is None:
        if num_classes is not None:
            raise ValueError("--num-classes goes with --model NAME; a model file knows its classes")
        network, card = load_model(checkpoint)
    else:
        network, card = _load_plain(checkpoint, model, num_classes)
    if card.task != "classification":
        raise ValueError(f"expected a classifier, but {checkpoint} is for {card.task}")
    if image_size is not None:
        if image_size < 1:
            raise ValueError(f"--image-size is a number of pixels of at least 1, got {image_size}")
        card = replace(card, image_size=(image_size, image_size))
    classes = int(getattr(network, "num_classes", 0) or 0)
    if classes < 2:
        raise ValueError(f"expected a classifier, but {checkpoint} has no classes: a backbone?")
    if card.class_names and len(card.class_names) != classes:
        raise ValueError(
            f"{checkpoint} names {len(card.class_names)} classes but its network has {classes}"
        )
    network = network.to(place).eval()
    if runtime == "openvino" and precision != "fp32":
        raise ValueError(f"--runtime openvino computes in fp32; leave out --precision {precision}")
    # Tried out as it is: compiling takes long, and is done for the batch that then comes.
    classifier = Classifier(network, card, classes, place, precision)
    _try_out(classifier)
    if runtime == "eager":
        return classifier
    try:
        return replace(classifier, forward=with_runtime(prepare(network, runtime), runtime))
    except ImportError as error:
        raise ValueError(str(error)) from error


def find_device(name: Device) -> torch.device:
    """The device to run on.

    Args:
        name: "auto" takes CUDA where there is some.

    Raises:
        ValueError: CUDA is asked for and not there.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ValueError("no CUDA device is available here; use --device cpu")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def _load_plain(
    checkpoint: Path, name: str, num_classes: int | None
) -> tuple[nn.Module, ModelCard]:
    from timm.data import resolve_model_data_config

    if checkpoint.is_dir():
        raise ValueError(f"--model goes with a file of weights, but {checkpoint} is a directory")
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    network = create_model(name, **arguments)
    logging.disable(logging.WARNING)  # what is missing is said below, in one line
    try:
        report = load_weights(network, checkpoint)
    finally:
        logging.disable(logging.NOTSET)
    if report.missing or report.dropped:
        raise ValueError(
            f"the classifier of {checkpoint} does not fit {name} with "
            f"{getattr(network, 'num_classes', 0)} classes ({report.summary()}); pass the number "
            "of classes it was trained with as --num-classes"
        )
    config = resolve_model_data_config(network)
    card = ModelCard(
        model=name,
        model_args=arguments,
        image_size=tuple(config["input_size"][1:]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
    )
    return network, card


def _try_out(classifier: Classifier) -> None:
    """Finds out before any work whether the network runs on such images here."""
    rows, columns = classifier.card.image_size
    try:
        shape = tuple(classifier.logits(torch.zeros(1, 3, rows, columns)).shape)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{classifier.card.model} cannot run on {rows}x{columns} images in "
            f"{classifier.precision} on {classifier.device.type}: {reason}"
        ) from error
    if shape != (1, classifier.num_classes):
        raise ValueError(
            f"expected logits of {classifier.num_classes} classes per image from "
            f"{classifier.card.model}, got the shape {shape}"
        )


def percent(fraction: float) -> str:
    """A fraction as text such as "96.40 %"; a dash for NaN.

    Args:
        fraction: In [0, 1].
    """
    return "-" if math.isnan(fraction) else f"{100 * fraction:.2f} %"
