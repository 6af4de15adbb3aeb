"""What a user sets of a classification run: data, augmentation, network; each a typed signature."""

from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.data import Mixup, resolve_data_config
from torch import nn

from wavevit.data.classification import ClassificationSplits, open_classification
from wavevit.data.transforms import Transform, train_transform
from wavevit.models.card import ModelCard, create_model
from wavevit.models.weights import load_weights


class ClassificationData:
    """The images and how they are batched.

    Args:
        path: Folder (``train/`` and ``val/``, or class folders), CSV file, folder or URL of tar
            shards (``wavevit shard``), or "shapes" for the built-in generated set.
        val_fraction: Share of each class held out for validation when the data has no split.
        split_seed: Seed of that split.
        image_size: Rows and columns of the network's input, pixels.
        batch_size: Images per process and forward pass.
        num_workers: Processes that decode and augment; 0 does so in the main process.

    Raises:
        ValueError: A value out of range.
    """

    def __init__(
        self,
        path: str = "shapes",
        val_fraction: float = 0.1,
        split_seed: int = 0,
        image_size: int = 128,
        batch_size: int = 64,
        num_workers: int = 2,
    ) -> None:
        if not path:
            raise ValueError("data.path is empty; name a folder, a CSV file, or shapes")
        if not 32 <= image_size <= 4096:
            raise ValueError(
                f"data.image_size must be at least 32 and at most 4096, got {image_size}"
            )
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                f"data.batch_size must be at least 1 and data.num_workers at least 0, got "
                f"{batch_size} and {num_workers}"
            )
        self.path = path
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.image_size = (image_size, image_size)
        self.batch_size = batch_size
        self.num_workers = num_workers

    def open(self) -> ClassificationSplits:
        """The splits.

        Raises:
            FileNotFoundError: No such path.
            ValueError: Nothing usable there.
        """
        return open_classification(
            self.path,
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
            image_size=self.image_size[0],
        )


class Augmentation:
    """What is done to training images, and to their labels.

    Args:
        crop_scale: Range of the random crop's area over the image's.
        crop_ratio: Range of the random crop's width over its height.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        rand_augment: RandAugment policy of timm, such as "rand-m9-mstd0.5-inc1", or None.
        color_jitter: Strength of colour jitter when there is no RandAugment, or None.
        random_erasing: Probability of erasing a rectangle with noise.
        interpolation: "bicubic", "bilinear" or "random".
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none.
        mix_prob: Probability that a batch is mixed at all.
        mix_switch_prob: Probability of cutmix where both are on.
        label_smoothing: Probability mass spread over all classes.
        repeats: Repeated augmentation: times that each sample comes in a row.
    """

    def __init__(
        self,
        crop_scale: tuple[float, float] = (0.25, 1.0),
        crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333),
        hflip: float = 0.5,
        vflip: float = 0.0,
        rand_augment: str | None = None,
        color_jitter: float | None = 0.3,
        random_erasing: float = 0.0,
        interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_prob: float = 1.0,
        mix_switch_prob: float = 0.5,
        label_smoothing: float = 0.1,
        repeats: int = 1,
    ) -> None:
        for name, probability in (
            ("hflip", hflip),
            ("vflip", vflip),
            ("random_erasing", random_erasing),
            ("mix_prob", mix_prob),
            ("mix_switch_prob", mix_switch_prob),
            ("label_smoothing", label_smoothing),
        ):
            if not 0 <= probability <= 1:
                raise ValueError(f"augment.{name} must be in [0, 1], got {probability}")
        for name, value in (("mixup", mixup), ("cutmix", cutmix), ("color_jitter", color_jitter)):
            if value is not None and value < 0:
                raise ValueError(f"augment.{name} must be at least 0, got {value}")
        if repeats < 1:
            raise ValueError(f"augment.repeats must be at least 1, got {repeats}")
        if not (0 < crop_scale[0] <= crop_scale[1] and 0 < crop_ratio[0] <= crop_ratio[1]):
            raise ValueError(
                "augment.crop_scale and augment.crop_ratio must be rising pairs above 0, got "
                f"{crop_scale} and {crop_ratio}"
            )
        self.crop_scale = crop_scale
        self.crop_ratio = crop_ratio
        self.hflip = hflip
        self.vflip = vflip
        self.rand_augment = rand_augment
        self.color_jitter = color_jitter
        self.random_erasing = random_erasing
        self.interpolation = interpolation
        self.mixup = mixup
        self.cutmix = cutmix
        self.mix_prob = mix_prob
        self.mix_switch_prob = mix_switch_prob
        self.label_smoothing = label_smoothing
        self.repeats = repeats

    def transform(self, card: ModelCard) -> Transform:
        """The transform of one training image.

        Args:
            card: Size and normalisation of the network's input.
        """
        return train_transform(
            card.image_size,
            crop_scale=self.crop_scale,
            crop_ratio=self.crop_ratio,
            hflip=self.hflip,
            vflip=self.vflip,
            rand_augment=self.rand_augment,
            color_jitter=self.color_jitter,
            random_erasing=self.random_erasing,
            interpolation=self.interpolation,
            mean=card.mean,
            std=card.std,
        )

    def mixing(self, num_classes: int) -> Mixup | None:
        """timm's mixup and cutmix, drawing from numpy's generator, or None when both are off.

        Args:
            num_classes: Classes of the data.
        """
        if not (self.mixup or self.cutmix):
            return None
        return Mixup(
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            prob=self.mix_prob,
            switch_prob=self.mix_switch_prob,
            label_smoothing=self.label_smoothing,
            num_classes=num_classes,
        )


_RESERVED_ARGS = {
    "num_classes": "it follows from the data",
    "img_size": "use data.image_size",
    "pretrained": "use model.pretrained",
    "drop_path_rate": "use model.drop_path_rate",
    "drop_rate": "use model.drop_rate",
    "token_label": "name label maps with token_label.maps, or a teacher with token_label.teacher",
}


class Classifier:
    """Which network, and what of it is trained.

    Args:
        name: Any model name of timm.
        weights: Checkpoint to start from; its head is dropped when class counts differ.
        pretrained: Starts from timm's own weights, downloaded.
        drop_path_rate: Stochastic depth of the last block.
        drop_rate: Dropout before the head.
        freeze: "backbone" trains the classifier layer alone; "none" trains everything.
        grad_checkpointing: Recomputes activations in the backward pass to save memory.
        args: Further arguments of the model.
    """

    def __init__(
        self,
        name: str = "wavevit_nano",
        weights: Path | None = None,
        pretrained: bool = False,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        freeze: Literal["none", "backbone"] = "none",
        grad_checkpointing: bool = False,
        args: dict[str, Any] | None = None,
    ) -> None:
        if weights is not None and not weights.is_file():
            raise FileNotFoundError(f"model.weights names no file: {weights}")
        if weights is not None and pretrained:
            raise ValueError("give model.weights or model.pretrained, not both")
        for rate_name, rate in (("drop_path_rate", drop_path_rate), ("drop_rate", drop_rate)):
            if not 0 <= rate < 1:
                raise ValueError(f"model.{rate_name} must be in [0, 1), got {rate}")
        reserved = _RESERVED_ARGS.keys() & (args or {}).keys()
        if reserved:
            key = min(reserved)
            raise ValueError(f"model.args cannot set {key}: {_RESERVED_ARGS[key]}")
        self.name = name
        self.weights = weights
        self.pretrained = pretrained
        self.drop_path_rate = drop_path_rate
        self.drop_rate = drop_rate
        self.freeze = freeze
        self.grad_checkpointing = grad_checkpointing
        self.args = args or {}

    def card(
        self, class_names: list[str], image_size: tuple[int, int], *, token_label: bool = False
    ) -> ModelCard:
        """How to rebuild the trained network, without training-only settings.

        Args:
            class_names: Names of the data's classes.
            image_size: Rows and columns of the input, pixels.
            token_label: Whether it has the second head that token labels train.

        Raises:
            ValueError: timm has no such model, or it has no such head.
        """
        if not timm.is_model(self.name):
            create_model(self.name)  # raises, with near names
        arguments = {**self.args, "num_classes": len(class_names)}
        if token_label:
            if not self.name.startswith("wavevit_"):
                raise ValueError(
                    f"token labels need a network with a head for every token: one of wavevit_*, "
                    f"got {self.name}; for other networks there is distill.teacher"
                )
            arguments["token_label"] = True
        config = timm.get_pretrained_cfg(self.name)
        if config is not None and config.fixed_input_size:
            arguments["img_size"] = image_size[0]
        defaults = resolve_data_config(pretrained_cfg=config.to_dict() if config else {})
        return ModelCard(
            model=self.name,
            model_args=arguments,
            class_names=class_names,
            image_size=image_size,
            mean=tuple(defaults["mean"]),
            std=tuple(defaults["std"]),
            crop_pct=defaults["crop_pct"],
            interpolation=defaults["interpolation"],
        )

    def build(self, card: ModelCard) -> nn.Module:
        """The network to train.

        Args:
            card: From `card`.

        Raises:
            ValueError: Arguments the model does not take, or weights that do not fit.
        """
        regularisation = {"drop_path_rate": self.drop_path_rate, "drop_rate": self.drop_rate}
        arguments = {key: value for key, value in regularisation.items() if value}
        if self.pretrained:
            arguments["pretrained"] = True
        model = create_model(card.model, **card.model_args, **arguments)
        if self.weights is not None:
            load_weights(model, self.weights)
        _try_out(model, card)
        if self.freeze == "backbone":
            model.requires_grad_(False)
            _classifier(model).requires_grad_(True)
        if self.grad_checkpointing:
            _enable_grad_checkpointing(model)
        return model

    def set_train_mode(self, model: nn.Module) -> None:
        """Training mode; a frozen backbone stays in evaluation mode, its BatchNorm fixed.

        Args:
            model: From `build`, wrapped or not.
        """
        if self.freeze == "none":
            model.train()
        else:
            model.eval()
            _classifier(model).train()


@torch.no_grad()
def _try_out(model: nn.Module, card: ModelCard) -> None:
    """Finds out before the run whether the network takes images of this size."""
    rows, columns = card.image_size
    try:
        shape = tuple(model.eval()(torch.zeros(1, 3, rows, columns)).shape)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{card.model} cannot run on {rows} x {columns} images: {reason}; try another "
            "data.image_size"
        ) from error
    if shape != (1, len(card.class_names)):
        raise ValueError(
            f"{card.model} gives outputs of shape {shape}, not a logit for each of the "
            f"{len(card.class_names)} classes; check model.args"
        )


def _classifier(model: nn.Module) -> nn.Module:
    layer: Any = getattr(model, "get_classifier")()  # noqa: B009 (timm's, unknown to nn.Module)
    modules = layer if isinstance(layer, tuple | list) else [layer]  # distilled models have two
    return nn.ModuleList(modules)


def _enable_grad_checkpointing(model: nn.Module) -> None:
    enable: Any = getattr(model, "set_grad_checkpointing", None)
    if enable is None:
        raise ValueError(f"{type(model).__name__} has no gradient checkpointing; leave it off")
    enable()
