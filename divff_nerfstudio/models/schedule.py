"""When what is trained: one schedule for all methods, and the options that it is settled from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, NamedTuple, Optional

from nerfstudio.configs.base_config import PrintableConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from divff_nerfstudio.former_names import formerly
from divff_nerfstudio.schema import Amount, Count, Positive
from divff_nerfstudio.training_folder import TrainingError

HEADS_SHARE, JOINT_SHARE = 0.75, 0.92
"""Parts of the training at which the heads begin, and all is trained together."""


class Schedule(NamedTuple):
    """The steps of a training at which something changes; what is not said happens from the start, or never."""

    moving_start_step: int = 0
    """From which the moving layers are trained, too; until then the static layer is alone."""
    heads_start_step: int = 0
    """From which the semantic heads are trained."""
    heads_alone_until: int = 0
    """Up to which the heads, once they are trained, are all that is trained."""
    joint_start_step: int = 0
    """From which features teach what they are rendered from, too."""
    networks_frozen_until: int = 0
    """Up to which, once the heads are trained, the networks stay as they are; all losses go on."""

    def static_only(self, step: int) -> bool:
        """Whether the static layer is trained alone."""
        return step < self.moving_start_step

    def heads_trained(self, step: int) -> bool:
        """Whether the heads are trained."""
        return step >= self.heads_start_step

    def heads_alone(self, step: int) -> bool:
        """Whether the heads are all that is trained."""
        return self.heads_start_step <= step < self.heads_alone_until

    def detached(self, step: int) -> bool:
        """Whether features do not teach what they are rendered from."""
        return step < self.joint_start_step

    def networks_frozen(self, step: int) -> bool:
        """Whether the networks stay as they are."""
        return self.heads_start_step <= step < self.networks_frozen_until

    def part(self, step: int) -> tuple[bool, ...]:
        """What is trained at a step, which stays the same within a part of the schedule."""
        of = self.static_only, self.heads_trained, self.heads_alone, self.detached, self.networks_frozen
        return tuple(is_so(step) for is_so in of)

    def ramp(self, step: int) -> float:
        """Rises from 0 to 1 over the first quarter of the geometry's part that all layers are trained in."""
        return min(1.0, (step - self.moving_start_step) / max(1, (self.heads_start_step - self.moving_start_step) // 4))


@dataclass
class PhasesConfig(PrintableConfig):
    """Options of a schedule of three parts: the static layer, all layers, and the heads on them."""

    static_share: ClassVar[float] = 0.12
    """Part of the training at which the static layer is joined, unless said otherwise."""
    # tyro and pyright agree on this form in Python 3.10.
    moving_start_step: Annotated[Optional[Amount], formerly("--pipeline.model.static-until")] = None  # noqa: UP045
    """Step from which the moving layers are trained beside the static one; None: settled when training starts."""
    heads_start_step: Annotated[Optional[Amount], formerly("--pipeline.model.heads-from")] = None  # noqa: UP045
    """Step from which the semantic heads are trained, on detached geometry; None: settled when training starts."""
    joint_start_step: Annotated[Optional[Amount], formerly("--pipeline.model.joint-from")] = None  # noqa: UP045
    """Step from which everything is trained together; None: settled when training starts."""

    def settle_phases(self, steps: int, windows: int = 1) -> None:
        """Settles the steps from the length of the training and around those that were chosen.

        Args:
            steps: Length of the training.
            windows: Windows of the video, all of which train the static layer: one's part of the steps is enough.

        Raises:
            TrainingError: If they do not ascend.
        """
        moving, heads, joint = self._phases()
        until_joint = steps if joint is None else joint
        if moving is None:
            alone = round(self.static_share * steps / windows)
            moving = min(alone, until_joint if heads is None else heads, until_joint)
        if heads is None:
            heads = max(moving, min(round(HEADS_SHARE * steps), until_joint))
        if joint is None:
            joint = max(heads, round(JOINT_SHARE * steps))
        self.moving_start_step, self.heads_start_step, self.joint_start_step = moving, heads, joint
        if not 0 <= moving <= heads <= joint:
            raise TrainingError(
                f"The schedule's steps do not ascend (moving-start-step {moving}, heads-start-step {heads}, "
                f"joint-start-step {joint}): mend those options of --pipeline.model."
            )

    def staged(self) -> Schedule:
        """The schedule; what is not settled counts as 0."""
        moving, heads, joint = (step or 0 for step in self._phases())
        return Schedule(moving, heads, heads_alone_until=joint, joint_start_step=joint)

    def heads_go_on_by(self, step: int) -> str:
        """What to give so that heads are trained from a step on, all else with them."""
        return f"--pipeline.model.heads-start-step {step} --pipeline.model.joint-start-step {step}"

    def _phases(self) -> tuple[int | None, int | None, int | None]:
        return self.moving_start_step, self.heads_start_step, self.joint_start_step


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
    steps_per_epoch: Optional[Positive] = None  # noqa: UP045
    """Steps of an epoch. None: settled when training starts: all training pixels over the rays of a batch; where
    another number of steps is asked for, epochs and frozen steps shrink or grow with it."""

    def settle(self, pixels: int, rays: int, features: bool, steps: int | None) -> None:
        """Settles the lengths of the stages; what is settled stays.

        Args:
            pixels: Pixels of the training frames.
            rays: Rays of a batch.
            features: Whether there are features to train heads on.
            steps: Steps that are asked for; None: as many as published.
        """
        if self.steps_per_epoch is not None:
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
        """Steps of all stages together; 0 before they are settled."""
        return round(sum(self.epochs) * (self.steps_per_epoch or 0))

    def staged(self) -> Schedule:
        """The schedule: features teach all that is not frozen."""
        heads = round(self.epochs[0] * (self.steps_per_epoch or 0)) if self.stages == "both" and self.epochs else 0
        return Schedule(
            heads_start_step=heads, networks_frozen_until=0 if self.stages == "joint" else heads + self.frozen_steps
        )


@dataclass
class StagedCosineConfig(SchedulerConfig):
    """Learning rate over stages of epochs."""

    _target: type = field(default_factory=lambda: StagedCosine)
    """target class to instantiate"""
    epochs: tuple[Amount, ...] = ()
    """Epochs of each stage; settled with the schedule."""
    steps_per_epoch: Optional[Positive] = None  # noqa: UP045
    """Steps of an epoch; settled with the schedule."""


class StagedCosine(Scheduler):
    """In each stage half a cosine from the initial learning rate to 0, changed once an epoch."""

    config: StagedCosineConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        """The scheduler, which is stepped once a training step."""
        return LambdaLR(optimizer, self.factor)

    def factor(self, step: int) -> float:
        """Learning rate of a step, in units of the initial one."""
        assert self.config.steps_per_epoch is not None
        epoch = int(step / self.config.steps_per_epoch + 1e-6)
        for epochs in self.config.epochs:
            if epoch < epochs:
                return (1 + math.cos(math.pi * epoch / epochs)) / 2
            epoch -= epochs
        return 0.0
