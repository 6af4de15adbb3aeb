"""Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391) at any stage of any network of timm.

Legend: B images, C channels, H W rows and columns of a map, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wavevit.explain.scores import Targets, scores_of
from wavevit.explain.stages import StageMap, stage_map
from wavevit.explain.watching import differentiating, evaluating, hooked, own_images, plain
from wavevit.models.feature_layout import name_of


def grad_cam(
    model: nn.Module,
    images: Tensor,
    targets: Targets | None = None,
    stage: int = -1,
) -> Tensor:
    """Where a stage's map speaks for a class.

    The channels of the map, each weighted by the mean of its gradient over all positions (equation
    1 of the paper), are added up, and what is negative becomes 0 (equation 2). A Wave-ViT's last
    map is taken before its norm, as class attention reads it.

    Args:
        model: A classifier of timm with ``feature_info``, a segmenter or a detector; it is run in
            evaluation mode.
        images: Normalised images ``(B, 3, H, W)``; for a detector ``(B, 3, H, W)`` in [0, 1].
        targets: What is explained, for each image: of a classifier a class, by default the most
            probable one; of a segmenter a class, by default the most frequent one, its score being
            the sum of its logits over the pixels it is found at; of a detector the rank of an
            object, by default 0, the most certain one. Or a function from the model's output to
            scores ``(B,)``.
        stage: Of the network, or of the backbone; from 0, or from the last if negative.

    Returns:
        float32 ``(B, H/s, W/s)`` at the stage's stride s, not negative, not normalised.

    Raises:
        ValueError: No such stage or target, or the score does not depend on the stage's map.
    """
    model = plain(model)
    place = stage_map(model, stage)
    with differentiating(model), evaluating(model):
        inputs = own_images(model, images)
        leaves: list[Any] = []
        with hooked(place.module, _cutting(leaves)):
            scores = scores_of(model, inputs, targets)
        features = _only(leaves, place)
        size = (inputs.shape[-2], inputs.shape[-1])
        activations = place.located(features.detach(), size).float()
        gradient = _gradient(scores, features)
        slopes = None if gradient is None else place.located(gradient, size).float()
        if slopes is None or not slopes.any():
            raise ValueError(
                f"the scores do not depend on the map of stage {stage} of {name_of(place.network)}"
                "; take an earlier stage (a ViT's last block passes on its class token alone)"
            )
        weights = slopes.mean(dim=(1, 2), keepdim=True)
        maps = (activations * weights).sum(dim=-1).relu()
        # Some networks pad their images at the right and below.
        return maps[:, : -(-size[0] // place.stride), : -(-size[1] // place.stride)]


def _cutting(leaves: list[Any]) -> Any:
    """A hook that puts a leaf in place of a map: gradients go no further, and reach it always."""

    def cut(module: nn.Module, arguments: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            leaves.append(output)
            return output
        leaf = output.detach().requires_grad_()
        leaves.append(leaf)
        return leaf.clone()  # what follows may change it in place, which a leaf forbids

    return cut


def _only(leaves: Sequence[Any], place: StageMap) -> Tensor:
    if len(leaves) != 1 or not isinstance(leaves[0], Tensor):
        what = f"a {type(leaves[0]).__name__}" if len(leaves) == 1 else f"{len(leaves)} maps"
        raise ValueError(
            f"expected one map of the module {type(place.module).__name__} of "
            f"{name_of(place.network)}, got {what}; take another stage"
        )
    return leaves[0]


def _gradient(scores: Tensor, features: Tensor) -> Tensor | None:
    if not scores.requires_grad:
        return None
    # One sum serves all images: in evaluation mode none knows of another.
    return torch.autograd.grad(scores.sum(), features, allow_unused=True)[0]
