"""What a user sets of a teacher's part in training: token labels and distillation."""

from pathlib import Path
from typing import Literal

from wavevit.models.card import ModelCard
from wavevit.models.teacher import Teacher
from wavevit.models.token_label import TokenLabelLoss
from wavevit.training.objectives import DistillationLoss, TokenLabelObjective


class TokenLabels:
    """Training with token labels; off unless maps or a teacher are named.

    Args:
        maps: Folder of label maps, packed or official, one for each training image.
        teacher: timm name of a classifier that labels the augmented images on the fly instead.
        weights: Checkpoint of that teacher; one of our model files says its name itself.
        pretrained: Takes timm's own weights for the teacher, downloaded.
        image_size: Rows and columns the teacher works at, pixels; None for those of the run.
        cls_weight: Weight of the class token's loss.
        token_weight: Weight of the patch tokens' loss.

    Raises:
        FileNotFoundError: No such folder or file.
        ValueError: Settings that do not go together.
    """

    def __init__(
        self,
        maps: Path | None = None,
        teacher: str | None = None,
        weights: Path | None = None,
        pretrained: bool = False,
        image_size: int | None = None,
        cls_weight: float = 1.0,
        token_weight: float = 0.5,
    ) -> None:
        if maps is not None and (teacher or weights):
            raise ValueError("give token_label.maps or token_label.teacher, not both")
        if maps is not None and image_size is not None:
            raise ValueError(
                "token_label.image_size is for a teacher that works on the fly; stored "
                f"token_label.maps have a size already: leave it out, got {image_size}"
            )
        if not (maps or teacher or weights) and (cls_weight, token_weight) != (1.0, 0.5):
            raise ValueError(
                "token_label.cls_weight and token_label.token_weight have no effect without token "
                "labels: name token_label.maps or token_label.teacher"
            )
        _check_teacher("token_label", teacher, weights, pretrained, image_size)
        if maps is not None and not maps.is_dir():
            raise FileNotFoundError(
                f"token_label.maps names no folder: {maps}; make one with `wavevit label-maps "
                "create` or `wavevit label-maps pack`"
            )
        if cls_weight < 0 or token_weight < 0 or cls_weight + token_weight == 0:
            raise ValueError(
                "token_label.cls_weight and token_label.token_weight must be at least 0, and one "
                f"above, got {cls_weight} and {token_weight}"
            )
        self.maps = maps
        self.teacher = teacher
        self.weights = weights
        self.pretrained = pretrained
        self.image_size = image_size
        self.cls_weight = cls_weight
        self.token_weight = token_weight

    @property
    def enabled(self) -> bool:
        """Whether the run trains with token labels at all."""
        return self.maps is not None or self.teacher is not None or self.weights is not None

    def objective(self, card: ModelCard, smoothing: float) -> TokenLabelObjective:
        """The loss, with its teacher if there is one.

        Args:
            card: Of the student.
            smoothing: Of the ground truth.

        Raises:
            ValueError: A teacher of other classes, or one that has no spatial map.
        """
        teacher = None
        if self.maps is None:
            teacher = _open_teacher(
                self.teacher, self.weights, self.pretrained, self.image_size, card, spatial=True
            )
        loss = TokenLabelLoss(self.cls_weight, self.token_weight)
        return TokenLabelObjective(len(card.class_names), smoothing, loss, teacher)


class Distillation:
    """Knowledge distillation; off unless a teacher is named.

    Args:
        teacher: timm name of a classifier of the same classes.
        weights: Checkpoint of that teacher; one of our model files says its name itself.
        pretrained: Takes timm's own weights for the teacher, downloaded.
        image_size: Rows and columns the teacher works at, pixels; None for those of the run.
        kind: "soft" learns the teacher's distribution, "hard" its first class.
        weight: Of the teacher in the loss, in [0, 1]; the labels have the rest.
        temperature: Distributions are softened by, for "soft".

    Raises:
        FileNotFoundError: No such file.
        ValueError: Settings out of range, or that do not go together.
    """

    def __init__(
        self,
        teacher: str | None = None,
        weights: Path | None = None,
        pretrained: bool = False,
        image_size: int | None = None,
        kind: Literal["soft", "hard"] = "soft",
        weight: float = 0.5,
        temperature: float = 1.0,
    ) -> None:
        _check_teacher("distill", teacher, weights, pretrained, image_size)
        if not 0 <= weight <= 1 or temperature <= 0:
            raise ValueError(
                "distill.weight must be in [0, 1] and distill.temperature above 0, got "
                f"{weight} and {temperature}"
            )
        if not (teacher or weights) and (kind, weight, temperature) != ("soft", 0.5, 1.0):
            raise ValueError(
                "distill.kind, distill.weight and distill.temperature have no effect without a "
                "teacher: name distill.teacher or distill.weights"
            )
        if kind == "hard" and temperature != 1.0:
            raise ValueError(
                "distill.temperature softens the teacher's distribution, of which distill.kind "
                f"hard takes the first class only: leave it out, got {temperature}"
            )
        self.teacher = teacher
        self.weights = weights
        self.pretrained = pretrained
        self.image_size = image_size
        self.kind = kind
        self.weight = weight
        self.temperature = temperature

    @property
    def enabled(self) -> bool:
        """Whether there is a teacher."""
        return self.teacher is not None or self.weights is not None

    def loss(self, card: ModelCard) -> DistillationLoss | None:
        """The teacher's part in the loss, or None.

        Args:
            card: Of the student.

        Raises:
            ValueError: A teacher of other classes.
        """
        if not self.enabled:
            return None
        teacher = _open_teacher(
            self.teacher, self.weights, self.pretrained, self.image_size, card, spatial=False
        )
        return DistillationLoss(teacher, self.kind, self.weight, self.temperature)


def _check_teacher(
    group: str, name: str | None, weights: Path | None, pretrained: bool, image_size: int | None
) -> None:
    if image_size is not None and image_size < 1:
        raise ValueError(
            f"{group}.image_size is a number of pixels of at least 1, got {image_size}"
        )
    if weights is not None and not weights.exists():
        raise FileNotFoundError(f"{group}.weights names no file: {weights}")
    if image_size is not None and name is None and weights is None:
        raise ValueError(f"{group}.image_size has no effect without {group}.teacher")
    if pretrained and (weights is not None or name is None):
        raise ValueError(f"{group}.pretrained goes with {group}.teacher, without {group}.weights")
    if name is not None and weights is None and not pretrained:
        raise ValueError(
            f"{group}.teacher {name} needs its weights: name a file with {group}.weights, or set "
            f"{group}.pretrained for timm's own"
        )


def _open_teacher(
    name: str | None,
    weights: Path | None,
    pretrained: bool,
    image_size: int | None,
    card: ModelCard,
    *,
    spatial: bool,
) -> Teacher:
    teacher = Teacher(
        name,
        weights,
        len(card.class_names),
        mean=card.mean,
        std=card.std,
        image_size=card.image_size if image_size is None else (image_size, image_size),
        pretrained=pretrained,
        spatial=spatial,
    )
    teacher.check_classes(card.class_names)
    return teacher
