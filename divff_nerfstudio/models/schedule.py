"""When what is trained: the phases of the default schedule, and the published one, stages with a cosine each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from nerfstudio.configs.base_config import PrintableConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from divff_nerfstudio.schema import Amount, Count, Weight


class Phases(NamedTuple):
    """Steps at which the phases of a training begin; what is not settled counts as 0."""

    static_until: int
    """Up to which the static layer is trained alone."""
    heads_from: int
    """From which the semantic heads are trained."""
    joint_from: int
    """From which everything is trained together."""

    @classmethod
    def of(cls, config: Any) -> Phases:
        """Those of a model's options of the same names."""
        return cls(*(getattr(config, name) or 0 for name in cls._fields))


@dataclass
class PublishedScheduleConfig(PrintableConfig):
    """Options of the schedule (DIV-FF)."""

    stages: Literal["both", "heads", "joint"] = "both"
    """"both": the geometry, then the heads. "heads": the second stage alone, on geometry that is loaded (imported).
    "joint": everything together from the start, for as many epochs as both stages have."""
    geometry_epochs: Count = 10
    """Epochs of the geometry."""
    heads_epochs: Count = 3
    """Epochs of the heads, with the photometric losses on."""
    frozen_steps: Amount = 5000
    """Steps of the heads during which the coarse and fine networks do not change; the frames' codes do."""
    epochs: tuple[Amount, ...] = ()
    """Epochs of each stage that there is. Empty: settled when training starts."""
    steps_per_epoch: Weight = 0.0
    """Steps of an epoch. 0: settled when training starts: all training pixels over the rays of a batch; where another
    number of steps is asked for, epochs and frozen steps shrink or grow with it."""

    def settle(self, pixels: int, rays: int, features: bool, steps: int) -> None:
        """Settles the lengths of the stages; what is settled stays.

        Args:
            pixels: Pixels of the training frames.
            rays: Rays of a batch.
            features: Whether there are features to train heads on.
            steps: Steps that are asked for; 0: as many as published.
        """
        if self.steps_per_epoch:
            return
        if self.stages == "joint":
            self.epochs = (self.geometry_epochs + self.heads_epochs,)
        else:
            geometry = (self.geometry_epochs,) if self.stages == "both" else ()
            self.epochs = (*geometry, self.heads_epochs) if features else geometry
        self.steps_per_epoch = float(math.ceil(pixels / rays))
        if steps:
            share = steps / (sum(self.epochs) * self.steps_per_epoch)
            self.steps_per_epoch *= share
            self.frozen_steps = round(self.frozen_steps * share)

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return round(sum(self.epochs) * self.steps_per_epoch)

    @property
    def heads_from(self) -> int:
        """Step at which the heads begin."""
        return round(self.epochs[0] * self.steps_per_epoch) if self.stages == "both" and self.epochs else 0

    def networks_frozen(self, step: int) -> bool:
        """Whether the coarse and fine networks stay as they are in a step."""
        return self.stages != "joint" and self.heads_from <= step < self.heads_from + self.frozen_steps


@dataclass
class StagedCosineConfig(SchedulerConfig):
    """Learning rate over stages of epochs."""

    _target: type = field(default_factory=lambda: StagedCosine)
    """target class to instantiate"""
    epochs: tuple[Amount, ...] = ()
    """Epochs of each stage; settled with the schedule."""
    steps_per_epoch: Weight = 0.0
    """Steps of an epoch; settled with the schedule."""


class StagedCosine(Scheduler):
    """In each stage half a cosine from the initial learning rate to 0, changed once an epoch."""

    config: StagedCosineConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        """The scheduler, which is stepped once a training step."""
        return LambdaLR(optimizer, self.factor)

    def factor(self, step: int) -> float:
        """Learning rate of a step, in units of the initial one."""
        epoch = int(step / self.config.steps_per_epoch + 1e-6)
        for epochs in self.config.epochs:
            if epoch < epochs:
                return (1 + math.cos(math.pi * epoch / epochs)) / 2
            epoch -= epochs
        return 0.0
