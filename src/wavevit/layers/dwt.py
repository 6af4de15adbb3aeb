"""The wavelet transform and its inverse as layers, with the bands packed into the channels.

Letters: B batch, C channels, H W rows and columns, h w rows and columns of a band.
"""

from typing import Any

import torch
from torch import Tensor, nn

from wavevit.ops.dwt import dwt2, haar_dwt2, haar_idwt2, idwt2
from wavevit.ops.wavelets import check_mode, check_wavelet, is_haar

# The original Wave-ViT code kept the Haar filters as buffers, +-0.5 in the order LL, LH, HL, HH:
# four of (1, 1, 2, 2) in its DWT, one of (4, 1, 2, 2) in its inverse.
_OLD_BUFFERS = ("w_ll", "w_lh", "w_hl", "w_hh", "filters")
_OLD_SIGNS = (1, 1, 1, 1, 1, 1, -1, -1, 1, -1, 1, -1, 1, -1, -1, 1)


class _WaveletLayer(nn.Module):
    """The settings both layers have; no parameters, no buffers."""

    def __init__(
        self, wavelet: str = "haar", *, mode: str = "symmetric", channels_last: bool = False
    ) -> None:
        super().__init__()
        check_wavelet(wavelet)
        check_mode(mode)
        self.is_haar = is_haar(wavelet)
        self.wavelet, self.mode, self.channels_last = wavelet, mode, channels_last
        self.register_load_state_dict_pre_hook(_drop_old_buffers)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"{self.wavelet!r}, mode={self.mode!r}, channels_last={self.channels_last}"


class DWT2d(_WaveletLayer):
    """One level of the 2-D wavelet transform, its four bands side by side in the channels.

    It has no parameters and no buffers. Filter buffers of the original Wave-ViT code in a state
    dict are compared with the Haar filters and dropped.

    Args:
        wavelet: A discrete wavelet's name in PyWavelets; other than "haar" needs
            `pip install "wavevit[wavelets]"`.
        mode: How the input continues past its edges, by PyWavelets' names.
        channels_last: Whether tensors are (B, H, W, C) instead of (B, C, H, W).

    Raises:
        ValueError: Unknown wavelet or mode.
        ImportError: PyWavelets is missing and the wavelet is not Haar.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The packed bands of x.

        Args:
            x: (B, C, H, W), or (B, H, W, C) with channels_last; floating point, any H, W >= 1.

        Returns:
            (B, 4C, h, w) with channels [ll(0..C-1), lh, hl, hh], or (B, h, w, 4C). For Haar, and
            for mode "periodization", h = ceil(H / 2).

        Raises:
            TypeError: x is not a real floating-point tensor.
            ValueError: x does not have four dimensions, or has no pixels.
        """
        if self.is_haar:
            return haar_dwt2(x, self.channels_last, mode=self.mode)
        _check_four_dimensions(x, "DWT2d")
        ll, *levels = dwt2(x, self.wavelet, mode=self.mode, channels_last=self.channels_last)
        return torch.cat((ll, *levels[0]), 3 if self.channels_last else 1)


class IDWT2d(_WaveletLayer):
    """The inverse of `DWT2d`.

    It has no parameters and no buffers. The filter buffer of the original Wave-ViT code in a state
    dict is compared with the Haar filters and dropped.

    Args:
        wavelet: The wavelet of the `DWT2d`.
        mode: The mode of the `DWT2d`.
        channels_last: Whether tensors are (B, H, W, C) instead of (B, C, H, W).

    Raises:
        ValueError: Unknown wavelet or mode.
        ImportError: PyWavelets is missing and the wavelet is not Haar.
    """

    def forward(self, y: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """The image whose packed bands y is.

        Args:
            y: (B, 4C, h, w), or (B, h, w, 4C) with channels_last; floating point.
            size: H and W of the original, needed where one is odd; without it they come out even.

        Returns:
            (B, C, H, W), or (B, H, W, C).

        Raises:
            TypeError: y is not a real floating-point tensor.
            ValueError: y does not have four dimensions, its channels are no multiple of 4, or the
                bands cannot have come from an image of this size.
        """
        if self.is_haar:
            return haar_idwt2(y, self.channels_last, size=size)
        _check_four_dimensions(y, "IDWT2d")
        axis = 3 if self.channels_last else 1
        if y.shape[axis] % 4:
            raise ValueError(
                f"IDWT2d needs a multiple of 4 channels (four bands), got {y.shape[axis]} with "
                f"channels_last={self.channels_last}; check the layout"
            )
        ll, lh, hl, hh = y.chunk(4, axis)
        return idwt2(
            (ll, (lh, hl, hh)),
            self.wavelet,
            size=size,
            mode=self.mode,
            channels_last=self.channels_last,
        )


def _check_four_dimensions(x: Tensor, name: str) -> None:
    if x.ndim != 4:
        raise ValueError(
            f"{name} needs four dimensions, (B, C, H, W) or (B, H, W, C), got shape "
            f"{tuple(x.shape)}; add the missing ones with unsqueeze"
        )


def _drop_old_buffers(
    layer: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any
) -> None:
    """A load_state_dict pre-hook; see `DWT2d`."""
    error_messages: list[str] = rest[-1]
    signs = torch.tensor(_OLD_SIGNS).view(4, 2, 2)
    for index, name in enumerate(_OLD_BUFFERS):
        old = state_dict.pop(prefix + name, None)
        if old is None:
            continue
        expected = 0.5 * (signs if name == "filters" else signs[index : index + 1])[:, None]
        haar = old.shape == expected.shape and torch.equal(old.float().cpu(), expected)
        if not (haar and getattr(layer, "is_haar", False)):
            error_messages.append(
                f"{prefix}{name}: expected the Haar filters of a layer with wavelet='haar', got "
                f"other values or another layer ({layer}); check the wavelet"
            )
