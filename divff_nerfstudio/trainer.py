"""nerfstudio's trainer with settings by device, checkpoints that are never half-written, and exact resumption."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, Optional

import torch
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE
from pydantic import Field
from torch import Tensor

from divff_nerfstudio.captured_steps import CapturedSteps, obstacle
from divff_nerfstudio.card import is_card, matrix_products
from divff_nerfstudio.checkpoints import CheckpointError, read_checkpoint
from divff_nerfstudio.curves import have_patience
from divff_nerfstudio.features.store import IMPORTED
from divff_nerfstudio.finite import FiniteWatch
from divff_nerfstudio.former_names import OPTIMIZERS
from divff_nerfstudio.heartbeat import beat
from divff_nerfstudio.interrupts import exit_status, handled, say_at_once
from divff_nerfstudio.launch import RunConfig
from divff_nerfstudio.option_ranges import check_config
from divff_nerfstudio.pipeline import DivFFPipeline, DivFFPipelineConfig
from divff_nerfstudio.resumption import (
    random_state,
    require_finite,
    require_optimizers,
    require_run,
    restore_random_state,
    telling_damage,
    write_checkpoint,
)
from divff_nerfstudio.schema import Count, Positive
from divff_nerfstudio.training_folder import TrainingError, checkpoint_to_load, checkpoints_in

_Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass
class FastAdamConfig(AdamOptimizerConfig):
    """Adam with a shorter memory of squared gradients, which suits grids."""

    betas: tuple[_Decay, _Decay] = (0.9, 0.99)
    """Decay of the running means of gradients and of their squares."""
    eps: Positive = 1e-15
    """Added to the denominator."""

    def setup(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """The optimizer, which does all of an update in one pass over memory."""
        optimizer = super().setup(params)
        for group in optimizer.param_groups:
            group["fused"] = all(parameter.device.type in ("cpu", "cuda") for parameter in group["params"])
        return optimizer


@dataclass
class DivFFTrainerConfig(RunConfig):
    """Configuration of a training run."""

    _target: type = field(default_factory=lambda: DivFFTrainer)
    """target class to instantiate"""
    pipeline: DivFFPipelineConfig = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default_factory=DivFFPipelineConfig
    )
    """pipeline configuration"""
    max_num_iterations: Optional[Count] = None  # noqa: UP045
    """Step at which training ends, resumed or not. None: as the method has it, settled when training starts."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Capture a step of each part of the schedule as a CUDA graph, so that the card takes the others without the host;
    auto: where that can be done."""
    tf32: bool = True
    """On a card, take the matrix products of training steps in TF32, which is several times as fast; views are rendered
    in single precision."""

    def settle(self) -> None:
        """Settles what depends on the device and on the length of the run; what the user has chosen stays.

        Raises:
            OptionError: If an option is out of its range.
            TrainingError: If the options make no sense.
        """
        check_config(self)
        gathered = self.gradient_accumulation_steps
        self.gradient_accumulation_steps = {OPTIMIZERS.get(name, name): steps for name, steps in gathered.items()}
        if unknown := sorted(self.gradient_accumulation_steps.keys() - self.optimizers.keys()):
            raise TrainingError(
                f"--gradient-accumulation-steps names {', '.join(unknown)}, which nothing trains: give one of "
                f"{', '.join(self.optimizers)}."
            )
        model, device = self.pipeline.model, "cuda" if self.machine.device_type == "cuda" else "cpu"
        self.max_num_iterations = model.settle(device, self.max_num_iterations, self.pipeline.datamanager)  # pyright: ignore[reportIncompatibleVariableOverride]
        for group in self.optimizers.values():
            if group["scheduler"] is not None:
                model.settle_scheduler(group["scheduler"], self.max_num_iterations)


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
        self._signals: list[int] = []
        self._stop = False
        self._catching = contextlib.ExitStack()
        self._watch = FiniteWatch(self.device)

    @property
    def _steps(self) -> int:
        """Steps that the configuration says, all or, while nerfstudio trains, those that are left."""
        assert self.config.max_num_iterations is not None
        return self.config.max_num_iterations

    @property
    def stop_training(self) -> bool:
        """Whether training ends behind the step that is under way; an interruption is not forgotten."""
        return self._stop or bool(self._signals)

    @stop_training.setter
    def stop_training(self, stop: bool) -> None:  # nerfstudio takes it back when training begins
        self._stop = stop

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Builds everything; what interrupts it ends the training before the first step.

        Raises:
            SystemExit: When it was interrupted.
            TrainingError: If another training writes to the same folder, or what was trained before would be lost.
        """
        self.config.claim()
        try:
            with handled(self._end_setup):
                super().setup(test_mode)
            have_patience()
        except BaseException:
            self._let_go(begun=False)
            raise
        if self._signals:  # something has swallowed the exception
            self._let_go(begun=False)
            raise SystemExit(exit_status(self._signals[0]))

    def train(self) -> None:
        """Trains the steps that are left: a resumed run ends where the unbroken one would have ended.

        The first Ctrl-C, or a SIGTERM, ends it after the step that is under way, which is saved; a second Ctrl-C ends
        it at once.

        Raises:
            TrainingError: If none are left, or something is no longer finite.
            SystemExit: When it was interrupted, after the checkpoint has been written.
        """
        total = self._steps
        try:
            self._require_steps_left(total)
            self.config.max_num_iterations = total - self._start_step  # nerfstudio counts from where it starts
            if self.config.folder is not None:
                self.config.folder.written.append(self.base_dir / "dataparser_transforms.json")
            with self._catching:
                self._catching.enter_context(handled(self._end_training))
                super().train()
        finally:
            self._captured = None  # graphs hold memory
            self.config.max_num_iterations = total
            self._let_go(begun=self._trained is not None)

    def _require_steps_left(self, total: int) -> None:
        if self._start_step >= total:
            raise TrainingError(
                f"The checkpoint has {self._start_step} of {total} steps behind it: give more with max-num-iterations."
            )
        if self.config.folder is not None and self.config.folder.resumed:
            self.config.write_config()
        stores = self.pipeline.datamanager.feature_stores
        if blank := [kind for kind, store in stores.items() if store.header.source == IMPORTED]:
            CONSOLE.print(
                f"[yellow]The {', '.join(blank)} features have no targets, which an import does not bring, so that "
                "their heads are not trained: run `divff extract` and import again to train them, too."
            )

    @cached_property
    def _captured(self) -> CapturedSteps | None:
        """Takes the steps, if they are to be captured and nothing speaks against it: asked for at the first."""
        if self.config.cuda_graphs == "off":
            return None
        if (why := obstacle(self)) is not None:
            if self.config.cuda_graphs == "on":
                CONSOLE.print(f"[yellow]Steps are trained one by one, without CUDA graphs: {why}.", soft_wrap=True)
            return None
        return CapturedSteps(self)

    @property
    def by_graph(self) -> bool:
        """Whether steps are now taken by a CUDA graph."""
        return self._captured is not None and self._captured.by_graph

    def _let_go(self, begun: bool = True) -> None:
        """Lets other trainings into the run's folder, in which nothing is left of one that has not begun."""
        if self.config.folder is not None:
            self.config.folder.release() if begun else self.config.folder.abandon()
            self.config.folder = None

    # Interruptions.

    def _end_setup(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        say_at_once("Interrupted before the first step: nothing was trained.")
        raise SystemExit(exit_status(self._signals[0]))

    def _end_training(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        if self._signals.count(signal.SIGINT) > 1:
            say_at_once("Ended at once.")
            raise SystemExit(exit_status(signal.SIGINT))
        if len(self._signals) == 1:
            say_at_once("Interrupted: a checkpoint is written after this step; Ctrl-C again ends at once.")

    def train_iteration(self, step: int) -> Any:
        """One step; takes note of it.

        Raises:
            TrainingError: If a loss or a parameter is not finite.
        """
        with matrix_products("high") if self.config.tf32 and is_card(self.device) else contextlib.nullcontext():
            if self._captured is None:
                found = super().train_iteration(step)
            else:
                found = self._captured.take(step)
                self.optimizers.scheduler_step_all(step)
        self._trained = step
        self._require_finite(self._watch.look(step, found[1], self.pipeline.named_parameters()))
        assert self.config.max_num_iterations is not None
        beat(step + 1, self._start_step + self.config.max_num_iterations, found[0].detach())
        return found

    def _require_finite(self, broken: str | None) -> None:
        """Ends the training if something is not finite; what was written before stays."""
        if broken is None:
            return
        left = checkpoints_in(self.checkpoint_dir)
        stays = f"{left[-1]} stays, go on from it with" if left else "no checkpoint was written yet, begin anew with"
        raise TrainingError(
            f"Training has stopped because {broken}: {stays} smaller learning rates (--optimizers.*.optimizer.lr), and "
            "look for values in the scene and its features that are far from the others."
        )

    def _after_train(self) -> None:
        """Writes the last checkpoint, under the last step that was trained: nerfstudio stops behind the next one."""
        if self._trained is not None:
            self.step = self._trained
        if not self._signals or self._trained == self._steps + self._start_step - 1:
            super()._after_train()
            return
        if self._trained is not None:
            self.save_checkpoint(self.step)
            CONSOLE.print(
                f"Stopped after step {self.step}; go on with --load-dir {self.checkpoint_dir}", soft_wrap=True
            )
        raise SystemExit(exit_status(self._signals[0]))

    def _train_complete_viewer(self) -> None:
        """Leaves the viewer open when training has finished, until it is interrupted, which is how it ends."""
        if self._signals:
            return
        self._catching.close()
        self._let_go()
        with handled(_end_well):
            super()._train_complete_viewer()

    # Checkpoints.

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Writes a checkpoint; older ones go when it is complete.

        Raises:
            TrainingError: If something is not finite, which is not written, or the disk is full; what was written
                before stays.
        """
        state = {
            "step": step,
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {name: _plain(each.state_dict()) for name, each in self.optimizers.optimizers.items()},
            "schedulers": {name: _plain(each.state_dict()) for name, each in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
            "random": random_state(self.pipeline.datamanager.resident),
        }
        self._require_finite(self._watch.look_now(step, _tensors(state)))
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        write_checkpoint(path, state)
        if self.config.save_only_latest_checkpoint:
            kept = self.config.folder.kept if self.config.folder is not None else frozenset()
            for other in checkpoints_in(self.checkpoint_dir):
                if other != path and other not in kept:
                    other.unlink()

    def _load_checkpoint(self) -> None:
        config = self.config
        path = checkpoint_to_load(config.load_checkpoint, config.load_dir, config.load_step)
        if path is None:
            CONSOLE.print("No checkpoint to load, so training from scratch.")
            return
        state = read_checkpoint(path)
        require_run(path, state)
        self._start_step = state["step"] + 1
        with telling_damage(path):
            try:
                self.pipeline.load_pipeline(state["pipeline"], state["step"])
            except CheckpointError as error:
                raise CheckpointError(f"{path} cannot be gone on from. {error}") from error
            self._load_optimizers(path, state)
        CONSOLE.print(f"Resuming at step {self._start_step} from {path}")

    def _load_optimizers(self, path: Path, state: Mapping[str, Any]) -> None:
        """Has optimizers, schedulers and random generators go on where they were."""
        if not state["optimizers"]:  # imported weights begin with fresh optimizers, at their place in the schedule
            for scheduler in self.optimizers.schedulers.values():
                scheduler.last_epoch = self._start_step - 1
                scheduler.step()
            return
        optimizers, schedulers = (_presently_named(state[kind]) for kind in ("optimizers", "schedulers"))
        require_optimizers(path, optimizers, self.optimizers.optimizers)
        self._require_heads_go_on(path, bool(optimizers.get("heads", {}).get("state")))
        for name, loaded in optimizers.items():  # whoever trained it may have had other kernels
            for group, own in zip(loaded["param_groups"], self.optimizers.optimizers[name].param_groups, strict=True):
                group |= {key: own[key] for key in ("foreach", "fused", "capturable") if key in own}
        require_finite(path, (schedulers, state["scalers"]), "schedulers")
        self.optimizers.load_optimizers(optimizers)
        if self.config.load_scheduler:
            self.optimizers.load_schedulers(schedulers)
        self.grad_scaler.load_state_dict(state["scalers"])
        restore_random_state(state["random"], self.pipeline.datamanager.resident)

    def _require_heads_go_on(self, path: Path, trained: bool) -> None:
        """Refuses a longer schedule that would leave heads alone that have been trained already.

        Raises:
            TrainingError: If it does.
        """
        schedule, start = self.pipeline.model.schedule, self._start_step
        if trained and not schedule.heads_trained(start):
            remedy = self.config.pipeline.model.heads_go_on_by(start)
            raise TrainingError(
                f"{path} has trained semantic heads, which would rest until step {schedule.heads_start_step} of "
                f"{self._steps}, and no question be answered before: give {remedy}, with which all go on."
            )


def _presently_named(states: Mapping[str, Any]) -> dict[str, Any]:
    return {OPTIMIZERS.get(name, name): state for name, state in states.items()}


def _end_well(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of a state by name."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


def _plain(state: Any) -> Any:
    """A state without NumPy scalars, which the safe loader refuses."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_plain(value) for value in state)
    return state.item() if hasattr(state, "item") and not isinstance(state, Tensor) else state
