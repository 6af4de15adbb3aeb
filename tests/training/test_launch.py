"""How processes find each other, and what is refused."""

import pytest
import torch
from lightning_fabric import Fabric

from wavevit.training.processes import (
    EchoedError,
    launch_fabric,
    lost_processes_explained,
    said_once,
)
from wavevit.training.state import FORMAT, TrainingState
from wavevit.training.teaching_settings import Distillation, TokenLabels


def launch() -> Fabric:
    return launch_fabric(precision="fp32", accelerator="cpu", strategy="ddp", timeout_s=5)


def test_a_world_without_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process would otherwise train by itself, all into one directory."""
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ValueError, match="WORLD_SIZE=8, but neither torchrun nor srun"):
        launch()


def launched(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """As torchrun would have started one of two processes."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, str(rank))
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")


def test_a_mistake_that_all_processes_find_is_told_by_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched(monkeypatch, rank=0)
    with pytest.raises(ValueError, match="wrong") as told, said_once():
        raise ValueError("wrong")
    assert not isinstance(told.value, EchoedError)
    launched(monkeypatch, rank=1)
    with pytest.raises(EchoedError, match="wrong"), said_once():
        raise ValueError("wrong")


def test_a_wrong_network_interface_is_a_mistake_and_not_a_lost_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched(monkeypatch, rank=0)
    with pytest.raises(ValueError, match="GLOO_SOCKET_IFNAME"), lost_processes_explained():
        raise RuntimeError("[gloo/transport/tcp/device.cc] Unable to find address for: nope0")


def test_a_taken_port_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, rank=0)
    words = "The server socket has failed to listen: EADDRINUSE, address already in use"
    with pytest.raises(ValueError, match="another --master-port"), lost_processes_explained():
        raise torch.distributed.DistNetworkError(words)


def test_a_checkpoint_of_another_layout_is_refused_in_words() -> None:
    network = torch.nn.Linear(1, 1)
    state = TrainingState(launch(), network, None, None, {}, 8, statistics_differ=False)
    old = {"versions": {"wavevit": "0.0.7"}, "config": {}}
    with pytest.raises(ValueError, match=f"reads layout {FORMAT}. Go on with wavevit 0.0.7"):
        state.check(old)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cls_weight": 0.5}, "have no effect without token labels"),
        ({"image_size": 64}, "no effect without token_label.teacher"),
    ],
)
def test_token_label_settings_without_effect_are_refused(
    settings: dict[str, float], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        TokenLabels(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "hard"}, "have no effect without a teacher"),
        ({"temperature": 2.0}, "have no effect without a teacher"),
        ({"image_size": 64}, "no effect without distill.teacher"),
        (
            {"teacher": "resnet18", "pretrained": True, "kind": "hard", "temperature": 2.0},
            "takes the first class only",
        ),
    ],
)
def test_distillation_settings_without_effect_are_refused(
    settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Distillation(**settings)  # type: ignore[arg-type]
