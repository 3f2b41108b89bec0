"""nerfstudio's trainer with settings by device, checkpoints that are never half-written, and exact resumption."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Optional

import torch
import tyro
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE
from pydantic import Field
from torch import Tensor

from divff_nerfstudio.checkpoints import read_checkpoint
from divff_nerfstudio.features.autoencoder import load_autoencoder
from divff_nerfstudio.features.store import IMPORTED
from divff_nerfstudio.fields.encodings import implementation_for
from divff_nerfstudio.files import DivffError, atomic_path
from divff_nerfstudio.model import DivFFModelConfig
from divff_nerfstudio.option_ranges import check_config
from divff_nerfstudio.pipeline import DivFFPipeline, DivFFPipelineConfig, random_state, restore_random_state
from divff_nerfstudio.published_model import PublishedModelConfig
from divff_nerfstudio.schedule import StagedCosineConfig
from divff_nerfstudio.schema import Amount, Positive
from divff_nerfstudio.splat.model import SplatModelConfig

ITERATIONS = {"cuda": 20000, "cpu": 5000}
"""Training steps by kind of device, unless said otherwise."""
RAYS = {"cuda": 4096, "cpu": 512}
"""Rays per step by kind of device, unless said otherwise."""
SPLAT_ITERATIONS = {"cuda": 15000, "cpu": 3000}
"""Training steps of Gaussians, a frame each, by kind of device, unless said otherwise."""
SPLAT_GAUSSIANS = {
    "cuda": {"static_start": 50000, "static_most": 300000, "dynamic_most": 60000, "actor_most": 40000},
    "cpu": {"static_start": 5000, "static_most": 8000, "dynamic_most": 3000, "actor_most": 2000},
}
"""Numbers of Gaussians by kind of device, unless said otherwise."""
SPLAT_STATIC_SHARE = 0.2
"""Part of the training at which the room of Gaussians is joined, which begins at random places."""
STATIC_SHARE, HEADS_SHARE, JOINT_SHARE = 0.12, 0.75, 0.92
"""Parts of the training at which the static layer is joined, the heads begin, and all is trained together."""


_STATE = frozenset(("step", "pipeline", "optimizers", "schedulers", "scalers", "random"))
"""What a checkpoint holds."""


_Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainingError(DivffError):
    """Training cannot start or go on."""


@dataclass
class FastAdamConfig(AdamOptimizerConfig):
    """Adam with a shorter memory of squared gradients, which suits grids."""

    betas: tuple[_Decay, _Decay] = (0.9, 0.99)
    """Decay of the running means of gradients and of their squares."""
    eps: Positive = 1e-15
    """Added to the denominator."""


@dataclass
class DivFFTrainerConfig(TrainerConfig):
    """Configuration of a training run."""

    _target: type = field(default_factory=lambda: DivFFTrainer)
    """target class to instantiate"""
    pipeline: DivFFPipelineConfig = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default_factory=DivFFPipelineConfig
    )
    """pipeline configuration"""
    max_num_iterations: Amount = 0
    """Step at which training ends, resumed or not. 0: by device, settled when training starts."""
    run_dir: tyro.conf.Suppress[Optional[Path]] = None  # noqa: UP045  (tyro and pyright agree on this form)
    """Folder of an imported run; others lie where nerfstudio puts them."""

    def get_base_dir(self) -> Path:
        """Folder with config.yml."""
        usual = super().get_base_dir()
        return usual if self.run_dir is None else self.run_dir

    def set_timestamp(self) -> None:
        """Called when a training begins: one that begins with an imported run gets a folder of its own."""
        self.run_dir = None
        super().set_timestamp()

    def settle(self) -> None:
        """Settles what depends on the device and on the length of the run; what the user has chosen stays.

        Raises:
            OptionError: If an option is out of its range.
            TrainingError: If the options make no sense.
        """
        check_config(self)
        device = "cuda" if self.machine.device_type == "cuda" else "cpu"
        self.max_num_iterations = self.max_num_iterations or ITERATIONS[device]
        model, data = self.pipeline.model, self.pipeline.datamanager
        assert isinstance(model, DivFFModelConfig)
        if model.fields.implementation == "auto":
            model.fields.implementation = implementation_for(device)
        data.train_num_rays_per_batch = data.train_num_rays_per_batch or RAYS[device]
        self._settle_schedule(model, STATIC_SHARE)

    def _settle_schedule(self, model: DivFFModelConfig | SplatModelConfig, static_share: float) -> None:
        """Settles the schedule's steps from the length of the run and around those that were chosen.

        Raises:
            TrainingError: If they do not ascend.
        """
        steps = self.max_num_iterations
        static, heads, joint = model.static_until, model.heads_from, model.joint_from
        model.static_until = static or min(round(static_share * steps), heads or steps, joint or steps)
        model.heads_from = heads or max(model.static_until, min(round(HEADS_SHARE * steps), joint or steps))
        model.joint_from = joint or max(model.heads_from, round(JOINT_SHARE * steps))
        if not 0 <= model.static_until <= model.heads_from <= model.joint_from:
            raise TrainingError(
                f"The schedule's steps do not ascend (static-until {model.static_until}, heads-from "
                f"{model.heads_from}, joint-from {model.joint_from}): mend those options of --pipeline.model."
            )
        for group in self.optimizers.values():
            if (scheduler := group["scheduler"]) is not None:
                scheduler.max_steps = steps
                scheduler.warmup_steps = min(scheduler.warmup_steps, steps // 2)  # it divides by what is left of them

    def save_config(self) -> None:
        """Writes config.yml with everything settled, so that a checkpoint opens on any device.

        Raises:
            TrainingError: If the run's folder cannot be written.
        """
        self.settle()
        try:
            super().save_config()
        except OSError as error:
            raise TrainingError(
                f"{self.get_base_dir()} cannot be written ({error.strerror or error}): choose another --output-dir."
            ) from error


@dataclass
class PublishedTrainerConfig(DivFFTrainerConfig):
    """Configuration of a training run by the published schedule."""

    def settle(self) -> None:
        """Settles the schedule from the scene's size, features and the steps asked for; what is settled stays.

        Raises:
            OptionError: If an option is out of its range.
            TrainingError: If the options make no sense, or heads shall be trained and there are no features.
        """
        check_config(self)
        model, data = self.pipeline.model, self.pipeline.datamanager
        assert isinstance(model, PublishedModelConfig)
        schedule = model.schedule
        if not schedule.steps_per_epoch:
            pixels, features = data.survey()
            if schedule.stages == "heads" and not features:
                raise TrainingError(
                    "The scene has no features to train semantic heads on: extract them with `divff extract`."
                )
            schedule.settle(pixels, data.train_num_rays_per_batch, features, self.max_num_iterations)
        if model.autoencoder is not None and model.autoencoder_sizes is None:
            model.autoencoder_sizes = load_autoencoder(model.autoencoder).config
        self.max_num_iterations = self.max_num_iterations or schedule.steps
        for group in self.optimizers.values():
            if isinstance(group["scheduler"], StagedCosineConfig):
                group["scheduler"].epochs = schedule.epochs
                group["scheduler"].steps_per_epoch = schedule.steps_per_epoch


@dataclass
class SplatTrainerConfig(DivFFTrainerConfig):
    """Configuration of a training run of Gaussians."""

    def settle(self) -> None:
        """Settles what depends on the device and on the length of the run; what the user has chosen stays.

        Raises:
            OptionError: If an option is out of its range.
            TrainingError: If the options make no sense, or the file of points is missing.
        """
        check_config(self)
        device = "cuda" if self.machine.device_type == "cuda" else "cpu"
        model = self.pipeline.model
        assert isinstance(model, SplatModelConfig)
        if model.points is not None and not model.points.is_file():
            raise TrainingError(f"{model.points} does not exist: give a PLY file or COLMAP's points3D as points.")
        self.max_num_iterations = self.max_num_iterations or SPLAT_ITERATIONS[device]
        for name, count in SPLAT_GAUSSIANS[device].items():
            setattr(model, name, getattr(model, name) or count)
        self._settle_schedule(model, SPLAT_STATIC_SHARE)


class DivFFTrainer(Trainer):
    """Trains a scene.

    A checkpoint holds the state of the random generators: training resumed from it draws what the unbroken run drew.
    """

    config: DivFFTrainerConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    pipeline: DivFFPipeline  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: DivFFTrainerConfig, local_rank: int = 0, world_size: int = 1):
        config.settle()
        super().__init__(config, local_rank, world_size)
        self._trained: int | None = None
        self._interrupted = False
        self._catching = contextlib.ExitStack()

    def train(self) -> None:
        """Trains the steps that are left: a resumed run ends where the unbroken one would have ended.

        The first Ctrl-C ends it after the step that is under way, which is saved; the second one ends it at once.

        Raises:
            TrainingError: If none are left.
            SystemExit: When it was interrupted, after the checkpoint has been written.
        """
        total = self.config.max_num_iterations
        if self._start_step >= total:
            raise TrainingError(
                f"The checkpoint has {self._start_step} of {total} steps behind it: give more with max-num-iterations."
            )
        stores = self.pipeline.datamanager.feature_stores
        if blank := [kind for kind, store in stores.items() if store.header.source == IMPORTED]:
            CONSOLE.print(
                f"[yellow]The {', '.join(blank)} features have no targets, which an import does not bring, so that "
                "their heads are not trained: run `divff extract` and import again to train them, too."
            )
        self.config.max_num_iterations = total - self._start_step  # nerfstudio counts from where it starts
        try:
            with self._catching:
                self._catching.enter_context(self._interrupts_caught())
                super().train()
        finally:
            self.config.max_num_iterations = total

    @contextlib.contextmanager
    def _interrupts_caught(self) -> Iterator[None]:
        """Has the first Ctrl-C end the training behind a whole step."""
        if self.world_size > 1 or threading.current_thread() is not threading.main_thread():
            yield
            return
        usual = signal.getsignal(signal.SIGINT) or signal.default_int_handler

        def stop(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, usual)
            self._interrupted = self.stop_training = True
            CONSOLE.print("Interrupted: a checkpoint is written after this step; Ctrl-C again ends at once.")

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)

    def train_iteration(self, step: int) -> Any:
        """One step; takes note of it."""
        found = super().train_iteration(step)
        self._trained = step
        return found

    def _after_train(self) -> None:
        """Writes the last checkpoint, under the last step that was trained: nerfstudio stops behind the next one."""
        self._catching.close()
        if self._trained is not None:
            self.step = self._trained
        if not self._interrupted:
            super()._after_train()
            return
        if self._trained is not None:
            self.save_checkpoint(self.step)
            CONSOLE.print(
                f"Stopped after step {self.step}; go on with --load-dir {self.checkpoint_dir}", soft_wrap=True
            )
        raise SystemExit(130)

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Writes a checkpoint under a temporary name and renames it; older ones go when it is complete.

        The temporary file lies outside the folder of checkpoints, in which nerfstudio's commands take every file, even
        one that a killed process has left, for a checkpoint.
        """
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        state = {
            "step": step,
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {name: _plain(each.state_dict()) for name, each in self.optimizers.optimizers.items()},
            "schedulers": {name: _plain(each.state_dict()) for name, each in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
            "random": random_state(),
        }
        unfinished = self.base_dir / path.name
        with atomic_path(unfinished) as temporary:
            torch.save(state, temporary)
        unfinished.replace(path)
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("*.ckpt"):
                if other != path:
                    other.unlink()

    def _load_checkpoint(self) -> None:
        path = self._checkpoint_to_load()
        if path is None:
            CONSOLE.print("No checkpoint to load, so training from scratch.")
            return
        state = read_checkpoint(path)
        if not isinstance(state, dict) or not state.keys() >= _STATE:
            raise TrainingError(
                f"{path} is no checkpoint of a run: give one that ns-train wrote; those that were published are "
                "taken over by `divff import`."
            )
        self._start_step = state["step"] + 1
        self.pipeline.load_pipeline(state["pipeline"], state["step"])
        if state["optimizers"]:
            self.optimizers.load_optimizers(state["optimizers"])
            if self.config.load_scheduler:
                self.optimizers.load_schedulers(state["schedulers"])
            self.grad_scaler.load_state_dict(state["scalers"])
            restore_random_state(state["random"])
        else:  # imported weights begin with fresh optimizers, at their place in the schedule
            for scheduler in self.optimizers.schedulers.values():
                scheduler.last_epoch = self._start_step - 1
                scheduler.step()
        CONSOLE.print(f"Resuming at step {self._start_step} from {path}")

    def _checkpoint_to_load(self) -> Path | None:
        """The checkpoint to resume from, if any is asked for."""
        config = self.config
        if config.load_checkpoint is not None:
            path = config.load_checkpoint
        elif config.load_dir is None:
            return None
        elif config.load_step is not None:
            path = config.load_dir / f"step-{config.load_step:09d}.ckpt"
        else:
            found = sorted(config.load_dir.glob("step-*.ckpt"))
            if not found:
                raise TrainingError(f"{config.load_dir} holds no checkpoint: give the folder with step-*.ckpt files.")
            path = found[-1]
        if not path.is_file():
            raise TrainingError(f"The checkpoint {path} does not exist: see which ones its folder holds.")
        return path


def _plain(state: Any) -> Any:
    """A state without NumPy scalars, which the safe loader refuses."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_plain(value) for value in state)
    return state.item() if hasattr(state, "item") and not isinstance(state, Tensor) else state
