"""Energy of the four sub-bands of images, and of what a Wave-ViT transforms inside.

Legend: B images, C channels, H W rows and columns, h w those of a sub-band.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from wavevit.explain.watching import look, plain
from wavevit.models.wave_vit import Stage, WaveletAttention
from wavevit.ops.dwt import haar_dwt2


@dataclass(frozen=True)
class SubbandEnergy:
    """How the energy of a signal, its sum of squares, is spread over its four Haar sub-bands.

    The transform is orthonormal: the four energies add up to the signal's own (Parseval).

    Attributes:
        name: "image", or the block's name in a Wave-ViT, such as "stages.0.blocks.1".
        shares: float64 ``(B, 4)`` in [0, 1] of LL, LH, HL and HH, summing to 1; NaN for an image
            whose signal is 0 everywhere.
        total: float64 ``(B,)`` energy.
    """

    name: str
    shares: Tensor
    total: Tensor

    @property
    def dropped(self) -> Tensor:
        """Shares ``(B,)`` that average pooling, which keeps LL alone, would have dropped."""
        return self.shares[:, 1:].sum(dim=1)


def subband_energy(model: nn.Module, images: Tensor) -> list[SubbandEnergy]:
    """Energy per sub-band of what each wavelet block transforms: its reduced map after ReLU.

    Args:
        model: A Wave-ViT, or a network that contains one; it is run in evaluation mode.
        images: Normalised images ``(B, 3, H, W)``; for a detector in [0, 1].

    Returns:
        One for each wavelet block, from the first to the last.

    Raises:
        ValueError: A model without wavelet blocks.
    """
    model = plain(model)
    blocks = _wavelet_blocks(model)
    energies: dict[str, SubbandEnergy] = {}
    handles = []
    try:
        for name, attention in blocks:

            def measure(module: nn.Module, arguments: tuple[Tensor], name: str = name) -> None:
                energies[name] = _energy(name, arguments[0])

            # The filter's input is the packed sub-bands, just as the block uses them.
            handles.append(attention.filter.register_forward_pre_hook(measure))
        look(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return [energies[name] for name, _ in blocks]


def image_subband_energy(images: Tensor) -> SubbandEnergy:
    """Energy per sub-band of the images themselves.

    Args:
        images: ``(B, C, H, W)`` floats, any range; of normalised images LL has a smaller share, as
            the mean is taken off.

    Raises:
        TypeError: Not floating point.
        ValueError: Not four dimensions.
    """
    return _energy("image", haar_dwt2(images.detach()))


def _wavelet_blocks(model: nn.Module) -> list[tuple[str, WaveletAttention]]:
    blocks = []
    stages = [module for module in model.modules() if isinstance(module, Stage)]
    for i, stage in enumerate(stages):
        for j, block in enumerate(stage.blocks):
            attention = block.attn
            if isinstance(attention, WaveletAttention):
                blocks.append((f"stages.{i}.blocks.{j}", attention))
    if not blocks:
        raise ValueError(
            "expected a Wave-ViT, or a network that contains one: this model has no wavelet blocks"
        )
    return blocks


def _energy(name: str, packed: Tensor) -> SubbandEnergy:
    """Energies of packed sub-bands ``(B, 4C, h, w)``."""
    # float64: a sum over millions of values is what is compared with the signal's own.
    energies = packed.double().square().sum(dim=(2, 3)).unflatten(1, (4, -1)).sum(dim=2).cpu()
    total = energies.sum(dim=1)
    return SubbandEnergy(name, energies / total[:, None], total)
