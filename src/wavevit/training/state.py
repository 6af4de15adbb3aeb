"""What of a run changes as it goes, and how a checkpoint holds it."""

import math
import platform
from dataclasses import asdict, dataclass, field
from typing import Any

import lightning_fabric
import timm
import torch
from lightning_fabric import Fabric
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import wavevit
from wavevit.data.samplers import mix_seeds
from wavevit.training.checkpoint import restore_rng_state, rng_state
from wavevit.training.processes import gather
from wavevit.training.sharding import load_whole, load_whole_optimizer, whole

FORMAT = 2
"""Number of the layout of checkpoints; another one is refused."""


@dataclass
class Position:
    """Where a run stands; part of a checkpoint.

    Attributes:
        step: Optimizer steps done.
        best_score: Best validation score so far.
        best_step: Step of the best score.
        evaluations_since_best: Evaluations without a better score.
        log_bytes: Length of the log at this step.
        seconds: Training time so far, evaluation included.
        unreadable: Files that could not be read: sample id to reason.
    """

    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    log_bytes: int = 0
    seconds: float = 0.0
    unreadable: dict[str, str] = field(default_factory=dict)


class TrainingState:
    """Network, averages, optimizer, position and generators of this process's part of a run.

    Args:
        fabric: The processes.
        network: Without wrappers, perhaps sharded.
        optimizer: As Fabric wraps it.
        ema: Averaged weights, if any.
        config: Settings of the run.
        images_per_step: Images of a step over all processes.
        statistics_differ: Whether each process has running statistics of its own.
    """

    def __init__(
        self,
        fabric: Fabric,
        network: nn.Module,
        optimizer: Any,
        ema: ModelEmaV3 | None,
        config: dict[str, Any],
        images_per_step: int,
        *,
        statistics_differ: bool,
    ) -> None:
        self.fabric = fabric
        self.network = network
        self.optimizer = optimizer
        self.ema = ema
        self.config = config
        self.images_per_step = images_per_step
        self.statistics_differ = statistics_differ
        self.position = Position()

    def capture(self) -> dict[str, Any]:
        """Content of a checkpoint, whole on process 0; to be called on every process."""
        self.collect_unreadable()
        keep = self.fabric.is_global_zero
        return {
            "format": FORMAT,
            "model": whole(self.network.state_dict(), keep=keep),
            "ema": None if self.ema is None else whole(self.ema.module.state_dict(), keep=keep),
            "optimizer": whole(self.optimizer.state_dict(), keep=keep),
            "statistics": gather(self.fabric, self._statistics()),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "position": asdict(self.position),
            "rng": gather(self.fabric, rng_state(self.fabric.device)),
            "images_per_step": self.images_per_step,
            "config": self.config,
            "versions": versions(),
        }

    def collect_unreadable(self) -> None:
        """Puts together what the processes could not read; to be called on every process."""
        parts = gather(self.fabric, self.position.unreadable)
        self.position.unreadable = {key: why for part in parts for key, why in part.items()}

    def _statistics(self) -> dict[str, Tensor]:
        """This process's own running statistics, of the network and of the averages."""
        if not self.statistics_differ:
            return {}
        return {name: buffer.cpu() for name, buffer in self._float_buffers().items()}

    def _float_buffers(self) -> dict[str, Tensor]:
        networks = {"model": self.network}
        if self.ema is not None:
            networks["ema"] = self.ema.module
        return {
            f"{kind}.{name}": buffer
            for kind, network in networks.items()
            for name, buffer in network.named_buffers()
            if buffer.is_floating_point()
        }

    def check(self, saved: dict[str, Any]) -> None:
        """Refuses a checkpoint of another layout, or whose steps are of another size.

        Args:
            saved: From `capture`.

        Raises:
            ValueError: The layout or the images of a step differ.
        """
        if saved.get("format") != FORMAT:
            raise ValueError(
                f"cannot resume: the checkpoint has layout {saved.get('format', 1)}, this version "
                f"of wavevit reads layout {FORMAT}. Go on with wavevit "
                f"{saved.get('versions', {}).get('wavevit', 'of that time')}, or start a new run "
                "with --model.weights and the run's best.safetensors"
            )
        if saved["images_per_step"] != self.images_per_step:
            raise ValueError(
                f"cannot resume with {self.images_per_step} images a step: the run has "
                f"{saved['images_per_step']}. With another number of processes, change "
                "trainer.accumulate (or data.batch_size) so that their product stays the same"
            )

    def restore(self, saved: dict[str, Any], seed: int) -> None:
        """Takes over the content of a checkpoint, made by any number of processes.

        Args:
            saved: From `capture`.
            seed: Of the run. A process that the checkpoint has no generators for gets new ones.
        """
        load_whole(self.network, saved["model"])
        if self.ema is not None:
            load_whole(self.ema.module, saved["ema"])
        load_whole_optimizer(self.optimizer, saved["optimizer"])
        self.fabric.strategy.precision.load_state_dict(saved["scaler"])
        self.position.__dict__.update(saved["position"])
        rank = self.fabric.global_rank
        if len(saved["rng"]) == self.fabric.world_size:
            own = saved["statistics"][rank]
            for name, buffer in self._float_buffers().items():
                if name in own:
                    buffer.copy_(own[name])
            restore_rng_state(saved["rng"][rank], self.fabric.device)
        else:
            number = self.position.step * self.fabric.world_size + rank
            self.fabric.seed_everything(mix_seeds(seed, number) % 2**32, verbose=False)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {
        "wavevit": wavevit.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "lightning_fabric": lightning_fabric.__version__,
    }
