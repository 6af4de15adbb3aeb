"""The feature pyramid, whatever its extra levels come from."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wavevit.detection.fpn import FPN

CHANNELS = (4, 6, 8, 10)


@pytest.fixture
def features() -> list[Tensor]:
    """Maps whose sides are not twice the next ones'."""
    sizes = ((23, 18), (12, 9), (6, 5), (3, 3))
    return [torch.randn(2, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]


@pytest.mark.parametrize(
    ("extra_levels", "start", "num_levels", "num_convs"),
    [("on_input", 1, 5, 2), ("on_output", 1, 5, 2), ("max_pool", 0, 5, 0), ("none", 0, 4, 0)],
)
def test_levels_have_one_width_and_halve(
    features: list[Tensor], extra_levels: str, start: int, num_levels: int, num_convs: int
) -> None:
    fpn = FPN(CHANNELS, 7, start_level=start, num_levels=num_levels, extra_levels=extra_levels)
    levels = fpn(features)
    sizes = [(23, 18), (12, 9), (6, 5), (3, 3), (2, 2), (1, 1)]
    assert [tuple(x.shape) for x in levels] == [
        (2, 7, *size) for size in sizes[start : start + num_levels]
    ]
    assert len(list(fpn.extra.parameters())) == 2 * num_convs


def test_the_top_down_path_adds_to_each_lateral(features: list[Tensor]) -> None:
    fpn = FPN(CHANNELS, 7, start_level=2, num_levels=2, extra_levels="none")
    top = fpn.laterals[1](features[3])
    below = fpn.laterals[0](features[2]) + F.interpolate(top, size=(6, 5), mode="nearest")
    fine, coarse = fpn(features)
    torch.testing.assert_close(coarse, fpn.outputs[1](top))
    torch.testing.assert_close(fine, fpn.outputs[0](below))


def test_extra_levels_start_where_they_say(features: list[Tensor]) -> None:
    from_input = FPN(CHANNELS, 7, start_level=2, num_levels=4, extra_levels="on_input")
    levels = from_input(features)
    torch.testing.assert_close(levels[2], from_input.extra[0](features[3]))
    torch.testing.assert_close(levels[3], from_input.extra[1](levels[2]))  # no ReLU between
    from_output = FPN(CHANNELS, 7, start_level=2, num_levels=4, extra_levels="on_output")
    levels = from_output(features)
    torch.testing.assert_close(levels[2], from_output.extra[0](levels[1]))
    pooled = FPN(CHANNELS, 7, start_level=2, num_levels=3, extra_levels="max_pool")(features)
    assert torch.equal(pooled[2], pooled[1][:, :, ::2, ::2])


def test_biases_start_at_zero() -> None:
    fpn = FPN(CHANNELS, 7, extra_levels="max_pool")
    assert all(not p.any() for name, p in fpn.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra_levels": "pool"}, "extra_levels must be one of .*, got 'pool'"),
        ({"extra_levels": "none"}, "5 levels cannot be made from 4 maps"),
        ({"num_levels": 4}, "4 levels cannot be made from 4 maps with extra_levels='max_pool'"),
        ({"num_levels": 3}, "3 levels cannot be made from 4 maps"),
        ({"start_level": 4}, "5 levels cannot be made from 0 maps"),
    ],
)
def test_levels_that_cannot_be_made_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FPN(CHANNELS, 7, **options)  # type: ignore[arg-type]
