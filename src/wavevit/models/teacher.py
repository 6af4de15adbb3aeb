"""Teachers: trained classifiers whose answers others learn from (spec section 4.1).

Legend: B batch, H W rows and columns, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from wavevit.models.card import ModelCard, create_model, model_file, read_card
from wavevit.models.official import head_prefixes
from wavevit.models.spatial_logits import spatial_logits
from wavevit.models.weights import match_weights, read_checkpoint


class Teacher(nn.Module):
    """A frozen classifier, always in evaluation mode, fed with somebody else's images.

    Args:
        name: timm model name; may be left out when the weights are a model file of ours.
        weights: Model file or run directory of ours, or any file of weights for ``name``; None
            goes with ``pretrained``.
        num_classes: Classes it must have; None takes what the weights have.
        mean: Per channel, of values in [0, 1], that the given images are normalised with.
        std: Per channel, of values in [0, 1], that the given images are normalised with.
        image_size: Rows and columns, pixels, that the classifier works at: images of another size
            are resized. None takes them as they come, or at the architecture's own fixed size.
        pretrained: Takes the weights that timm downloads for ``name``.
        spatial: Whether `spatial_logits` will be needed; a network without a map is then refused.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Weights that do not fit, lack the classifier, are for another network or have
            other classes; or a network that has no spatial map or does not take such images.

    Attributes:
        model: The classifier.
        card: Its name, arguments, class names (perhaps none) and own preparation of images.
        num_classes: K.
        image_size: Rows and columns it works at, pixels; None for those of the images.
        grid: Rows and columns of its map at that size, or at its own; None unless spatial.
    """

    model: nn.Module
    card: ModelCard
    num_classes: int
    image_size: tuple[int, int] | None
    grid: tuple[int, int] | None
    _scale: Tensor
    _shift: Tensor

    def __init__(
        self,
        name: str | None,
        weights: Path | None,
        num_classes: int | None = None,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: tuple[int, int] | None = None,
        pretrained: bool = False,
        spatial: bool = True,
    ) -> None:
        super().__init__()
        self.model, self.card = _load(name, weights, num_classes, pretrained)
        self.model.requires_grad_(False)
        self.num_classes = int(self.model.num_classes)  # type: ignore[arg-type]
        self.image_size = _fix_size(self.model, self.card, image_size)
        given_mean, given_std, own_mean, own_std = (
            torch.tensor(tuple(values)).reshape(-1, 1, 1)
            for values in (mean, std, self.card.mean, self.card.std)
        )
        self.register_buffer("_scale", given_std / own_std, persistent=False)
        self.register_buffer("_shift", (given_mean - own_mean) / own_std, persistent=False)
        self.eval()
        self.grid = self._try_out(spatial)

    @property
    def class_names(self) -> list[str]:
        """One name per class, in order; empty when the weights do not say."""
        return self.card.class_names

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode, whatever the network around it does."""
        return super().train(False)

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Raises unless the teacher's classes are those of the data, in the same order.

        Weights from the literature do not name their classes: then only the number is compared.

        Args:
            class_names: Of the data.

        Raises:
            ValueError: They differ; the message says in what.
        """
        teacher = f"the teacher {self.card.model}"
        if not self.class_names:
            if len(class_names) != self.num_classes:
                raise ValueError(
                    f"{teacher} has {self.num_classes} classes and the data {len(class_names)}; "
                    "train a teacher on this data, or one with the same classes"
                )
            return
        if list(class_names) == self.class_names:
            return
        parts = []
        for who, names, others in (
            ("the teacher", self.class_names, set(class_names)),
            ("the data", class_names, set(self.class_names)),
        ):
            alone = [name for name in names if name not in others]
            if alone:
                more = f" and {len(alone) - 5} more" if len(alone) > 5 else ""
                parts.append(f"only {who} has {', '.join(alone[:5])}{more}")
        if not parts:
            first = next(i for i, n in enumerate(self.class_names) if n != class_names[i])
            parts.append(
                f"they come in another order, class {first} is {self.class_names[first]!r} for "
                f"the teacher and {class_names[first]!r} in the data"
            )
        raise ValueError(f"{teacher} and the data need the same classes: {'; '.join(parts)}")

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)`` of whole images, float32, without gradient.

        Args:
            images: ``(B, 3, H, W)``, normalised with the given mean and standard deviation.
        """
        with torch.no_grad():
            logits: Any = self.model(self._prepare(images))
        if isinstance(logits, tuple | list):
            logits = torch.stack(tuple(logits)).mean(dim=0)
        return logits.float()

    def spatial_logits(self, images: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Logits of every location, float32, without gradient.

        Args:
            images: ``(B, 3, H, W)``, normalised with the given mean and standard deviation.
            grid: Rows and columns to average the map to; None leaves it as it is.

        Returns:
            ``(B, K, rows, columns)``.
        """
        logits = spatial_logits(self.model, self._prepare(images)).float()
        if grid is not None and grid != tuple(logits.shape[-2:]):
            logits = F.adaptive_avg_pool2d(logits, grid)
        return logits

    def _prepare(self, images: Tensor) -> Tensor:
        if self.image_size is not None and tuple(images.shape[-2:]) != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bicubic", antialias=True)
        return images * self._scale + self._shift

    def _try_out(self, spatial: bool) -> tuple[int, int] | None:
        """Rows and columns of the map; finds out before any work whether the network runs."""
        rows, columns = self.image_size or self.card.image_size
        images = torch.zeros(1, 3, rows, columns)
        try:
            logits = self.spatial_logits(images) if spatial else self(images)
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{self.card.model} cannot run on {rows}x{columns} images: {reason}"
            ) from error
        return (int(logits.shape[-2]), int(logits.shape[-1])) if spatial else None


def _load(
    name: str | None, weights: Path | None, num_classes: int | None, pretrained: bool
) -> tuple[nn.Module, ModelCard]:
    if pretrained == (weights is not None):
        raise ValueError(
            "a teacher needs weights: name either a file of them or timm's own download"
            + (", not both" if pretrained else "")
        )
    if weights is None:
        if name is None:
            raise ValueError("a teacher with timm's downloaded weights needs the model's name")
        model, card = create_model(name, pretrained=True), None
    else:
        weights = model_file(weights)
        is_ours = weights.suffix == ".safetensors" or not weights.exists()
        card = read_card(weights) if is_ours else None
        model, card = _load_file(name, weights, card, num_classes)
    classes = int(getattr(model, "num_classes", 0) or 0)
    if classes < 2:
        raise ValueError(f"expected a classifier as the teacher, but {name} has no classes")
    if num_classes not in (None, classes):
        raise ValueError(f"expected a teacher of {num_classes} classes, but {name} has {classes}")
    return model.eval(), card or _plain_card(name or "", model, {})


def _load_file(
    name: str | None, path: Path, card: ModelCard | None, num_classes: int | None
) -> tuple[nn.Module, ModelCard]:
    if card is None and name is None:
        raise ValueError(f"{path} does not say which network it is for: name the teacher's model")
    if card is not None:
        if card.task != "classification":
            raise ValueError(f"expected a classifier as the teacher, but {path} is for {card.task}")
        if name is not None and name.split(".")[0] != card.model.split(".")[0]:
            raise ValueError(f"{path} is a {card.model}, not a {name}; leave the name out")
    state = read_checkpoint(path)
    model = card.build() if card else create_model(str(name))
    found = _num_classes_of(model, state)
    if num_classes not in (None, found) and found is not None:
        raise ValueError(f"expected a teacher of {num_classes} classes, but {path} has {found}")
    arguments = {} if found is None else {"num_classes": found}
    if card is None and found not in (None, model.num_classes):
        model = create_model(str(name), **arguments)
    usable, report = match_weights(model, state)
    if not report.complete or report.missing or report.dropped:
        network = card.model if card else name
        raise ValueError(f"{path} does not fit {network} as a teacher: {report.summary()}")
    if card is not None and len(card.class_names) not in (0, model.num_classes):
        raise ValueError(
            f"{path} names {len(card.class_names)} classes but its network has {model.num_classes}"
        )
    model.load_state_dict(usable)
    return model, card or _plain_card(str(name), model, arguments)


def _num_classes_of(model: nn.Module, state: dict[str, Tensor]) -> int | None:
    """Classes that a checkpoint's classifier has; None where it has none."""
    for prefix in head_prefixes(model):
        for leaf in ("weight", "bias"):
            value = state.get(prefix + leaf)
            if value is not None and value.ndim:
                return value.shape[0]
    return None


def _plain_card(name: str, model: nn.Module, arguments: dict[str, Any]) -> ModelCard:
    # At the size of testing where there is one: NFNet-F6 trains at 448 and is used at 576 pixels.
    fixed = (getattr(model, "pretrained_cfg", None) or {}).get("fixed_input_size", False)
    config = resolve_model_data_config(model, use_test_size=not fixed)
    return ModelCard(
        model=name,
        model_args=arguments,
        image_size=tuple(config["input_size"][1:]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
    )


def _fix_size(
    model: nn.Module, card: ModelCard, wanted: tuple[int, int] | None
) -> tuple[int, int] | None:
    """The size to resize images to; an architecture of fixed size is set to the wanted one."""
    config = getattr(model, "pretrained_cfg", None) or {}
    if not config.get("fixed_input_size"):
        return wanted
    own = card.image_size
    if wanted is None or wanted == own:
        return own
    resize = getattr(model, "set_input_size", None)
    if not callable(resize):
        raise ValueError(
            f"{card.model} takes only {own[0]}x{own[1]} images, got the size "
            f"{wanted[0]}x{wanted[1]}"
        )
    try:
        resize(img_size=wanted)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{card.model} cannot be set to {wanted[0]}x{wanted[1]} images: {reason}"
        ) from error
    return wanted
