"""Effective receptive field (Luo et al., NeurIPS 2016, arXiv 1701.04128).

Legend: B images, C channels, H W rows and columns in pixels, h w those of a stage's map.
"""

import torch
from torch import Tensor, nn

from wavevit.explain.stages import backbone_of, stage_map
from wavevit.explain.watching import differentiating, evaluating, outputs_of, own_images, plain
from wavevit.models.feature_layout import name_of


def effective_receptive_field(
    model: nn.Module,
    stage: int = -1,
    images: Tensor | None = None,
    *,
    image_size: tuple[int, int] | int | None = None,
    num_images: int = 16,
    seed: int = 0,
) -> Tensor:
    """How much each pixel changes the centre position of a stage's map.

    The absolute gradient of that position, averaged over images and colours. Its channels are added
    up with random signs, anew for each image: with equal ones, the sum over channels of a
    normalised map is a constant, whose gradient is 0.

    Args:
        model: A network of timm with ``feature_info``, or a detector or segmenter, whose backbone
            is looked at; it is run in evaluation mode.
        stage: From 0, or from the last if negative.
        images: Normalised images ``(B, 3, H, W)``; or give ``image_size``.
        image_size: H and W, or one number for both, of images of normal noise, pixels.
        num_images: Of noise.
        seed: Of noise and signs.

    Returns:
        float32 ``(H, W)``, shares of the whole gradient, which sum to 1.

    Raises:
        ValueError: Neither images nor a size, or both; no such stage; a map without gradient.
    """
    network = backbone_of(plain(model))
    place = stage_map(network, stage)
    generator = torch.Generator().manual_seed(seed)
    if (images is None) == (image_size is None):
        raise ValueError("expected either images or image_size")
    if images is None:
        sides = (image_size, image_size) if isinstance(image_size, int) else image_size
        assert sides is not None
        if len(sides) != 2 or min(sides) < 1 or num_images < 1:
            raise ValueError(
                f"expected an image_size (H, W) and num_images of at least 1, got {sides} and "
                f"{num_images}"
            )
        channels = int(getattr(network, "in_chans", 3))
        images = torch.randn(num_images, channels, *sides, generator=generator)
    with differentiating(network), evaluating(network):
        total = torch.zeros(images.shape[-2:], dtype=torch.float64)
        inputs = own_images(network, images)
        for one in inputs.split(1):  # one at a time: memory does not grow with their number
            one.requires_grad_()
            with outputs_of(place.module) as kept:
                network(one)
            if not kept[0]:
                raise ValueError(f"{name_of(network)} does not run the module of stage {stage}")
            features = place.located(kept[0][-1], (one.shape[-2], one.shape[-1]))
            centre = features[0, features.shape[1] // 2, features.shape[2] // 2]
            signs = torch.randint(0, 2, centre.shape, generator=generator) * 2 - 1
            (gradient,) = torch.autograd.grad((centre * signs.to(centre)).sum(), one)
            total += gradient[0].double().abs().mean(dim=0).cpu()
    if not total.any():
        raise ValueError(f"the centre of stage {stage} of {name_of(network)} has no gradient")
    return (total / total.sum()).float()


def central_side(field: Tensor, share: float) -> int:
    """Side of the smallest square about the centre that holds a share of a receptive field.

    Args:
        field: ``(H, W)`` of `effective_receptive_field`.
        share: In (0, 1].

    Returns:
        Pixels; the square reaches as far as the image does.

    Raises:
        ValueError: A share outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"expected a share in (0, 1], got {share}")
    rows, columns = (
        (torch.arange(size, device=field.device) - (size - 1) / 2).abs() for size in field.shape
    )
    distances = torch.maximum(rows[:, None], columns[None]).flatten()
    order = distances.argsort(stable=True)
    sums = field.double().flatten()[order].cumsum(0)
    # Rounding must not ask for a pixel more than there is.
    reached = int(torch.searchsorted(sums, share * sums[-1] * (1 - 1e-9)))
    return int(2 * distances[order[reached]]) + 1
