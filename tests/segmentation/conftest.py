"""What the tests of segmenters share: the recorded outputs of the official one."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wavevit.segmentation.official import our_state
from wavevit.segmentation.segmenter import Segmenter

HAAR = (".w_ll", ".w_lh", ".w_hl", ".w_hh", ".filters")


@dataclass
class Recording:
    """One file of golden/segmentation: what the official segmenter computed.

    Attributes:
        facts: The JSON file: state dict, parameter counts.
        record: Losses, gradient norms.
        arrays: The NPZ file, flattened and strided.
        images: The recorded input, normalised.
        labels: Its label map.
    """

    facts: dict[str, Any]
    record: dict[str, Any]
    arrays: Any
    images: Tensor
    labels: Tensor

    def array(self, name: str) -> Tensor:
        """A recorded array, as it is stored."""
        return torch.from_numpy(self.arrays[name])

    def assert_close(self, name: str, actual: Tensor, *, atol: float) -> None:
        """Compares a whole tensor with the recorded part of it.

        Args:
            name: The array's name.
            actual: What we computed, of the recorded shape.
            atol: Tolerance, relative to the largest recorded value.
        """
        meta = self.record["arrays"][name]
        expected = self.array(name)
        assert list(actual.shape) == meta["shape"], name
        flat = actual.detach().float().reshape(-1)[:: meta["stride"]].reshape(expected.shape)
        torch.testing.assert_close(
            flat, expected, rtol=0, atol=atol * meta["absmax"], msg=lambda m: f"{name}: {m}"
        )

    def official_weights(self) -> dict[str, Tensor]:
        """The official state dict that its names and the seed stand for."""
        import fill

        shapes = {name: shape for name, shape, _ in self.facts["state_dict"]}
        weights = fill.fill_state(self.facts["seed"], shapes)
        return {name: torch.from_numpy(value) for name, value in weights.items()}

    def our_names(self, segmenter: Segmenter) -> dict[str, str]:
        """Official names, in order, to ours; what we compute is left out."""
        # Each entry holds its own number, so that it can be told under its new name.
        officials = [name for name, _, _ in self.facts["state_dict"]]
        state = {
            name: torch.tensor(float(i)).expand(shape)
            for i, (name, shape, _) in enumerate(self.facts["state_dict"])
            if not name.endswith(HAAR)
        }
        mapped = our_state(segmenter, state)
        return {officials[int(value.flatten()[0])]: ours for ours, value in mapped.items()}


@pytest.fixture(scope="session")
def recording(golden: Path) -> Callable[[str], Recording]:
    """Reads a file of golden/segmentation by its name, such as "upernet_s_seed0"."""

    def read(name: str) -> Recording:
        import inputs

        stem = golden / "segmentation" / name
        facts = json.loads(stem.with_suffix(".json").read_text())
        given = inputs.seg_batch(facts["seed"])
        return Recording(
            facts=facts,
            record=facts["record"],
            arrays=np.load(stem.with_suffix(".npz")),
            images=torch.tensor(given["img"]),
            labels=torch.tensor(given["label"]),
        )

    return read
