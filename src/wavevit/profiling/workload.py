"""One call of what is measured: a batch classified, or a step of training, by a network of timm.

Letters: B batch, H W rows and columns, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavevit.models.card import create_model
from wavevit.models.runtimes import Runtime, prepare, with_runtime
from wavevit.models.wave_vit import WaveVit
from wavevit.profiling.precision import Precision, dtype_of
from wavevit.profiling.timing import Call

Mode = Literal["inference", "training"]

LOW_PRECISIONS = ("bf16", "fp16")

NOT_RUNNABLE = (RuntimeError, AssertionError, ValueError, TypeError, IndexError)
"""What a network can answer to a size, a precision or a compiler that it was not made for."""


def one_line(error: Exception, most: int = 200) -> str:
    """An error's text in one line, or its kind where it has none.

    Args:
        error: The error.
        most: Longer texts are cut off after so many letters.
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


@dataclass(frozen=True)
class Case:
    """What is run.

    Attributes:
        model: timm model name.
        precision: Of weights and images, or of autocast.
        runtime: How the network is run.
        batch_size: B.
        image_size: H and W, pixels.
    """

    model: str
    precision: Precision
    runtime: Runtime
    batch_size: int
    image_size: int

    @property
    def setting(self) -> str:
        """What it shares with the cases that it takes turns with, as a user reads it."""
        return f"{self.precision} batch {self.batch_size} {self.image_size} px"

    @property
    def name(self) -> str:
        """As a user reads it."""
        return f"{self.model} {self.runtime} {self.setting}"


@dataclass(frozen=True)
class Workload:
    """What all cases of a run have in common.

    Attributes:
        mode: Inference is a forward pass; training is forward pass, soft cross-entropy, backward
            pass and AdamW step, under autocast in bf16 and fp16.
        device: "cpu" or "cuda".
        autocast: In bf16 and fp16, inference keeps weights and images in fp32 too and runs under
            autocast, instead of converting them.
        fuse: Inference with norms folded (`wavevit.fuse`), in every network that can.
        channels_last: That memory format for the images and weights of all networks; Wave-ViT has
            it in any case.
        grad_checkpointing: Training keeps the borders of blocks and computes the rest again.
    """

    mode: Mode = "inference"
    device: str = "cpu"
    autocast: bool = False
    fuse: bool = True
    channels_last: bool = False
    grad_checkpointing: bool = False

    def call(self, case: Case) -> Call:
        """Builds a case's network, with weights and inputs from a fixed seed, and what runs it.

        Args:
            case: What is run.

        Raises:
            ValueError: The network cannot be built so.
            ImportError: The runtime is missing.
        """
        # Any: for overloads of `to`
        model: Any = self.network(case.model, case.image_size, case.runtime)
        images = _random(1, (case.batch_size, 3, case.image_size, case.image_size))
        if self.channels_last or isinstance(model, WaveVit):
            model = model.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
        if self.mode == "inference" and not self.autocast:
            model, images = model.to(dtype_of(case.precision)), images.to(dtype_of(case.precision))
        model, images = model.to(self.device), images.to(self.device)
        make = _inference if self.mode == "inference" else _training
        return make(model, images, case, self)

    def network(self, name: str, image_size: int, runtime: Runtime = "eager") -> nn.Module:
        """A network of this workload in fp32 on the CPU, with weights from a fixed seed.

        Args:
            name: timm model name.
            image_size: H and W, pixels, for networks that are built for one size.
            runtime: That inference prepares it for.

        Raises:
            ValueError: It cannot be built so.
        """
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        is_for_one_size = config is not None and config.fixed_input_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: Any = create_model(name, **({"img_size": image_size} if is_for_one_size else {}))
        if self.mode == "training":
            if self.grad_checkpointing:
                if not hasattr(model, "set_grad_checkpointing"):
                    raise ValueError(f"{name} has no gradient checkpointing")
                model.set_grad_checkpointing(True)
            model.train()
            return model
        model.eval()
        return prepare(model, runtime) if self.fuse else model

    def uses_autocast(self, precision: Precision) -> bool:
        """Whether cases of a precision run under autocast.

        Args:
            precision: Of the case.
        """
        return precision in LOW_PRECISIONS and (self.autocast or self.mode == "training")

    def autocast_in(self, precision: Precision) -> torch.autocast:
        """The context that a call runs in.

        Args:
            precision: Of the case.
        """
        enabled = self.uses_autocast(precision)
        return torch.autocast(self.device, dtype_of(precision), enabled=enabled)


def _random(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _inference(model: nn.Module, images: Tensor, case: Case, workload: Workload) -> Call:
    forward = with_runtime(model, case.runtime)
    replays_graphs = case.runtime == "cuda-graphs"

    def infer() -> Any:
        if replays_graphs:  # otherwise what the peers do would belong to the same iteration
            torch.compiler.cudagraph_mark_step_begin()
        # Entered anew in every call, as a user does: leaving it drops the converted weights.
        with workload.autocast_in(case.precision):
            return forward(images)

    return infer


def _training(model: nn.Module, images: Tensor, case: Case, workload: Workload) -> Call:
    forward: Callable[[Tensor], Tensor] = (
        torch.compile(model, dynamic=False) if case.runtime == "compiled" else model
    )
    num_classes = int(getattr(model, "num_classes", 0) or 0)
    if num_classes < 1:
        raise ValueError(f"{case.model} has no classes to train on")
    targets = _random(2, (case.batch_size, num_classes)).softmax(1).to(workload.device)
    is_cuda = workload.device == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=is_cuda)
    scaler = torch.amp.GradScaler(workload.device, enabled=case.precision == "fp16")

    def step() -> None:
        with workload.autocast_in(case.precision):
            loss = F.cross_entropy(forward(images), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()  # last: between two steps no gradients are held, so they count

    return step
