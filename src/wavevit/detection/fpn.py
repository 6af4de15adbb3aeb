"""Feature pyramid network (Lin et al. 2017, arXiv 1612.03144).

Legend: B batch, C channels, H W rows and columns of a map.
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

ExtraLevels = Literal["none", "on_input", "on_output", "max_pool"]
_EXTRA_LEVELS = ("none", "on_input", "on_output", "max_pool")


class FPN(nn.Module):
    """Maps of one width at every level: lateral 1x1, top-down nearest upsampling, 3x3 on top.

    No norm and no activation. Each extra level halves the one before it.

    Args:
        in_channels: Channels of all of the backbone's maps, finest first.
        out_channels: Channels C of every level.
        start_level: First of the backbone's maps to use; finer ones are left out.
        num_levels: Levels that come out, extra ones included.
        extra_levels: Where extra levels come from. "on_input": a stride-2 convolution on the
            backbone's last map, then on each other (RetinaNet); "on_output": the same starting
            from the last level (FCOS); "max_pool": every second cell of the last level (FPN for
            Faster R-CNN); "none": there are none.

    Raises:
        ValueError: Levels and maps do not fit together.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        *,
        start_level: int = 0,
        num_levels: int = 5,
        extra_levels: ExtraLevels = "max_pool",
    ) -> None:
        super().__init__()
        if extra_levels not in _EXTRA_LEVELS:
            raise ValueError(
                f"extra_levels must be one of {', '.join(_EXTRA_LEVELS)}, got {extra_levels!r}"
            )
        used = in_channels[start_level:]
        num_extra = num_levels - len(used)
        if not used or num_extra < 0 or (num_extra > 0) == (extra_levels == "none"):
            raise ValueError(
                f"{num_levels} levels cannot be made from {len(used)} maps with "
                f"extra_levels={extra_levels!r}"
            )
        self.start_level = start_level
        self.num_levels = num_levels
        self.out_channels = out_channels
        self.laterals = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in used)
        self.outputs = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in used
        )
        self.on_input = extra_levels == "on_input"
        self.extra = nn.ModuleList(
            nn.MaxPool2d(1, stride=2)
            if extra_levels == "max_pool"
            else nn.Conv2d(
                used[-1] if self.on_input and i == 0 else out_channels,
                out_channels,
                3,
                stride=2,
                padding=1,
            )
            for i in range(num_extra)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The levels ``(B, C, H, W)``, finest first.

        Args:
            features: The backbone's maps, finest first.
        """
        used = features[self.start_level :]
        merged: Tensor | None = None
        levels: list[Tensor] = []
        for lateral, output, x in reversed(
            list(zip(self.laterals, self.outputs, used, strict=True))
        ):
            inner = lateral(x)
            if merged is not None:
                # To the finer map's exact size, which need not be twice the coarser one's.
                inner = inner + F.interpolate(merged, size=inner.shape[-2:], mode="nearest")
            merged = inner
            levels.insert(0, output(merged))
        last = used[-1] if self.on_input else levels[-1]
        for extra in self.extra:
            last = extra(last)
            levels.append(last)
        return levels
