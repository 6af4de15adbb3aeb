"""What the tests of detectors share: the recorded outputs of the official ones."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wavevit.detection.detector import Detector
from wavevit.detection.official import our_state
from wavevit.detection.preprocess import ImageBatch

# Their true gradient is 0: a BatchNorm on batch statistics follows. The recorded norm is rounding.
_NO_GRADIENT = ("attn.reduce.0.bias", "attn.filter.0.bias")


@dataclass
class Recording:
    """One file of golden/detection: what the official detector computed.

    Attributes:
        facts: The JSON file: state dict, parameter counts.
        record: Losses, gradient norms, assignment counts.
        arrays: The NPZ file, flattened and strided.
        batch: The recorded input, normalised and padded.
        targets: Ground truth of each image.
        seed: Of the weights and of the input.
    """

    facts: dict[str, Any]
    record: dict[str, Any]
    arrays: Any
    batch: ImageBatch
    targets: list[dict[str, Tensor]]
    seed: int

    def array(self, name: str) -> Tensor:
        """A recorded array, as it is stored."""
        return torch.from_numpy(self.arrays[name])

    def assert_close(self, name: str, actual: Tensor, *, atol: float, rtol: float = 0.0) -> None:
        """Compares a whole tensor with the recorded part of it.

        Args:
            name: The array's name.
            actual: What we computed, of the recorded shape.
            atol: Tolerance, relative to the largest recorded value.
            rtol: Tolerance relative to each value.
        """
        meta = self.record["arrays"][name]
        expected = self.array(name)
        assert list(actual.shape) == meta["shape"], name
        flat = actual.detach().float().reshape(-1)[:: meta["stride"]].reshape(expected.shape)
        torch.testing.assert_close(
            flat, expected, rtol=rtol, atol=atol * meta["absmax"], msg=lambda m: f"{name}: {m}"
        )

    def assert_detections(self, prefix: str, detections: list[dict[str, Tensor]]) -> None:
        """Compares detections with the recorded ones: boxes to 0.1 px, scores to 1e-4.

        Args:
            prefix: Of the arrays' names, before the image's number.
            detections: Of every image.
        """
        for i, found in enumerate(detections):
            boxes, scores, labels = (
                self.array(f"{prefix}{i}.{key}") for key in ("boxes", "scores", "labels")
            )
            assert len(found["boxes"]) == len(boxes)
            # The order of detections with the same score is nobody's choice.
            distance = (found["boxes"][:, None] - boxes).abs().amax(dim=2)
            distance[found["labels"][:, None] != labels] = torch.inf
            partner = distance.argmin(dim=0)
            assert len(partner.unique()) == len(partner)
            torch.testing.assert_close(found["boxes"][partner], boxes, rtol=0, atol=0.1)
            torch.testing.assert_close(found["scores"][partner], scores, rtol=0, atol=1e-4)

    def gradient_norms(self) -> dict[str, float]:
        """Official names of the parameters with a gradient, and the norms of their gradients."""
        norms: dict[str, float] = self.record["grad_norms"]
        return {name: v for name, v in norms.items() if not name.endswith(_NO_GRADIENT)}


@pytest.fixture(scope="session")
def recording(golden: Path) -> Callable[[str], Recording]:
    """Reads a file of golden/detection by its name, such as "gfl_s_seed0" or "gfl_s_padded"."""

    def read(name: str) -> Recording:
        import inputs

        stem = golden / "detection" / name
        facts = json.loads(stem.with_suffix(".json").read_text())
        padded = name.endswith("_padded")
        seed = 0 if padded else facts["seed"]
        given = inputs.padded_batch() if padded else inputs.det_batch(seed)
        count, _, height, width = given["img"].shape
        whole = [(height, width)] * count
        targets = [
            {"boxes": torch.tensor(b), "labels": torch.tensor(c), "masks": torch.tensor(m)}
            for b, c, m in zip(given["boxes"], given["labels"], given["masks"], strict=True)
        ]
        return Recording(
            facts=facts,
            record=facts if padded else facts["record"],
            arrays=np.load(stem.with_suffix(".npz")),
            batch=ImageBatch(
                torch.tensor(given["img"]), given.get("img_hw", whole), given.get("pad_hw", whole)
            ),
            targets=targets,
            seed=seed,
        )

    return read


@pytest.fixture(scope="session")
def load_official(golden: Path) -> Callable[[Detector, dict[str, Any]], None]:
    """Fills a detector with the weights that its official names and a seed stand for."""

    def load(detector: Detector, facts: dict[str, Any]) -> None:
        import fill

        shapes = {name: shape for name, shape, _ in facts["state_dict"]}
        weights = fill.fill_state(facts["seed"], shapes)
        state = {name: torch.from_numpy(value) for name, value in weights.items()}
        detector.load_state_dict(our_state(detector, state), strict=True)

    return load


@pytest.fixture(scope="session")
def our_names() -> Callable[[Detector, dict[str, Any]], dict[str, str]]:
    """Official names of a recorded state dict, in order, to ours; what we compute is left out."""

    def names(detector: Detector, facts: dict[str, Any]) -> dict[str, str]:
        # Each entry holds its own number, so that it can be told under its new name.
        officials = [name for name, _, _ in facts["state_dict"]]
        state = {
            name: torch.tensor(float(i)).expand(shape)
            for i, (name, shape, _) in enumerate(facts["state_dict"])
            if not name.endswith((".w_ll", ".w_lh", ".w_hl", ".w_hh", ".filters"))
        }
        mapped = our_state(detector, state)
        return {officials[int(value.flatten()[0])]: ours for ours, value in mapped.items()}

    return names
