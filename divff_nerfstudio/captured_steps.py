"""Training steps that a card takes without the host: of each part of the schedule one is captured as a CUDA graph, and
done again for the others.

Now and then a step is taken by the graph and, from the same state, without it: what is replayed reads memory that
Python no longer looks after, and a graph that did something else than the step would be told by nothing but bad scores.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape
from torch import Tensor

from divff_nerfstudio.card import CardGraph, beside, generator_of, is_card, new_stream, wait_for
from divff_nerfstudio.errors import DivffError, first_line
from divff_nerfstudio.pipeline import DivFFPipeline
from divff_nerfstudio.training_folder import TrainingError

WARM_UP = 3
"""Steps of each part that are taken as usual: kernels are compiled and the optimizers' moments made at the first."""

FIRST_CHECKS, STEPS_BETWEEN_CHECKS = (1, 10, 100), 1000
"""Which of a graph's steps are taken both ways."""
SAME_LOSS, SAME_UPDATE = 0.01, 0.2
"""How far the two ways may differ in the sum of their losses, and in how they change parameters and first moments, as a
share: sums of gradients are made in any order on a card, and Adam makes much of a gradient that is next to nothing.
Another batch, or other random numbers, change moments otherwise by as much as they are changed at all."""


def obstacle(trainer: Trainer) -> str | None:
    """What keeps a training from being captured, in words; None if nothing does."""
    if not is_card(trainer.device):
        return "they need a CUDA device"
    if (why := trainer.pipeline.model.uncapturable) is not None:
        return f"{trainer.config.method_name} cannot be captured: {why}"
    if trainer.grad_scaler.is_enabled():
        return "the host decides about each step with --mixed-precision or --use-grad-scaler"
    if any(steps > 1 for steps in trainer.gradient_accumulation_steps.values()):
        return "steps differ with --gradient-accumulation-steps"
    if trainer.config.log_gradients:
        return "they do not give the gradients that --log-gradients asks for"
    others = {type(each).__name__ for each in trainer.optimizers.optimizers.values()} - {"Adam", "AdamW"}
    return f"the optimizer {min(others)} cannot be captured" if others else None


class CapturedSteps:
    """Takes training steps as `Trainer.train_iteration` does, except for the schedulers' steps.

    All that differs between the steps of a part lies in tensors that are written in place: the batch, the learning
    rates and the model's `paces`; random numbers come from the card's generator, which graphs go on with.

    Args:
        trainer: Ready to train, with its checkpoint loaded and no `obstacle`.
    """

    def __init__(self, trainer: Trainer):
        assert isinstance(trainer.pipeline, DivFFPipeline)
        self._trainer, self._pipeline, self._model = trainer, trainer.pipeline, trainer.pipeline.model
        self._device = torch.device(trainer.device)
        self._stream = new_stream(self._device)
        optimizers = trainer.optimizers.optimizers.values()
        self._groups = [group for each in optimizers for group in each.param_groups]
        self._rates = [torch.zeros((), device=self._device) for _ in self._groups]
        self._paces = {name: torch.zeros((), device=self._device) for name in self._model.paces(0)}
        for group in self._groups:  # one kernel, which counts the steps on the card
            group.update(fused=True, foreach=False)
        for moments in (moments for each in optimizers for moments in each.state.values()):
            moments["step"] = moments["step"].to(self._device, torch.float32)
        self._part: tuple[Any, ...] = ()
        self._taken, self._replayed, self._refused = 0, 0, False
        self._graph: CardGraph | None = None

    @property
    def by_graph(self) -> bool:
        """Whether the part of the schedule that is under way is taken by its graph."""
        return self._graph is not None

    def take(self, step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Takes a step.

        Returns:
            The sum of its losses, its losses and its metrics, which later steps leave alone.

        Raises:
            TrainingError: If the card fails at a graph.
        """
        self._write(step)
        if self._graph is None and self._taken >= WARM_UP and not self._refused:
            self._capture()
        if self._graph is None:
            self._take_uncaptured()
            self._taken += 1
        else:
            self._replayed += 1
            checked = self._replayed in FIRST_CHECKS or self._replayed % STEPS_BETWEEN_CHECKS == 0
            (self._take_both_ways if checked else self._replay)()
        total, *values = self._values.clone().unbind()
        losses, metrics = self._names
        named = dict(zip((*losses, *metrics), values, strict=True))
        return total, {name: named[name] for name in losses}, {name: named[name] for name in metrics}

    def _write(self, step: int) -> None:
        """Writes where the step reads it what belongs to a step; if a new part of the schedule begins, makes room."""
        drawn = self._pipeline.drawn(step)
        found = list(tensors_of(drawn))
        part = self._model.schedule.part(step), *((each.shape, each.dtype) for each in found)
        if part == self._part:
            torch._foreach_copy_(self._batch, found)
        else:
            wait_for(self._device)  # for what the graph that now goes has still to do
            self._part, self._taken, self._replayed, self._graph = part, 0, 0, None
            self._drawn = copy.deepcopy(drawn)
            self._batch = list(tensors_of(self._drawn))
        for rate, group in zip(self._rates, self._groups, strict=True):
            rate.fill_(group["lr"])
        for name, value in self._model.paces(step).items():
            self._paces[name].fill_(value)

    def _capture(self) -> None:
        for group in self._groups:
            group["capturable"] = True
        try:
            self._graph = CardGraph(self._run, self._stream)
        except DivffError:
            raise
        except Exception as error:
            cause: BaseException = error
            while cause.__context__ is not None:  # behind the first, PyTorch says that the capture has failed
                cause = cause.__context__
            self._refuse(first_line(cause))
        finally:
            for group in self._groups:
                group["capturable"] = False

    def _refuse(self, why: str) -> None:
        """Has all further steps taken without graphs."""
        self._graph, self._stream, self._refused = None, None, True
        CONSOLE.print(f"[yellow]Steps are trained one by one, without CUDA graphs: {escape(why)}", soft_wrap=True)

    def _take_uncaptured(self) -> None:
        with beside(self._stream):
            self._run()

    def _replay(self) -> None:
        assert self._graph is not None
        try:
            self._graph.replay()
        except RuntimeError as error:
            raise TrainingError(
                f"The card failed at a step that was captured as a CUDA graph ({first_line(error)}): go on from the "
                "last checkpoint with --cuda-graphs off."
            ) from error

    @torch.no_grad()
    def _take_both_ways(self) -> None:
        """Takes a step by the graph and, from the same state, without it, which counts.

        A graph that differs goes, and so does one beside which the card has no memory for a step.
        """
        generator, state = generator_of(self._device), self._state()
        random, before = generator.get_state(), {}
        try:
            before = {name: _copied(tensors) for name, tensors in state.items()}
            differing = self._differing(state, before, random)
        except torch.OutOfMemoryError:
            differing = None
        if differing is None:  # behind the exception, which holds on to what was made
            self._refuse("there is no memory for a step beside them.")
            _write(state, before)
            generator.set_state(random)
            with torch.enable_grad():
                self._take_uncaptured()
        elif differing:
            self._refuse(f"a captured step does something else than the step ({', '.join(differing)}).")

    def _differing(
        self, state: Mapping[str, list[Tensor]], before: Mapping[str, list[Tensor]], random: Tensor
    ) -> list[str]:
        """Takes a step by the graph, goes back to the state before, and takes it without.

        Returns:
            What of the state, by name, becomes something else by the graph.
        """
        written = self._values
        self._replay()
        found, total = {name: _copied(tensors) for name, tensors in state.items()}, written[0].clone()
        _write(state, before)
        generator_of(self._device).set_state(random)
        with torch.enable_grad():
            self._take_uncaptured()
        usual, self._values = self._values, written
        written.copy_(usual)
        shares = {name: _share(found[name], tensors, before[name]) for name, tensors in state.items() if name}
        summands = usual[1 : 1 + len(self._names[0])].abs().sum()  # the sum itself may be next to nothing
        shares["the loss"] = (total - usual[0]).abs() / summands * (SAME_UPDATE / SAME_LOSS)
        off = dict(zip(shares, torch.stack([*shares.values()]).tolist(), strict=True))
        return [name for name, share in off.items() if not share <= SAME_UPDATE]

    def _state(self) -> dict[str, list[Tensor]]:
        """All tensors that a step changes; by name those that tell whether it is the same step, the others by none."""
        state = {"": [*self._model.buffers()]}
        for name, optimizer in self._trainer.optimizers.optimizers.items():
            state[f"parameters of {name}"] = [each for group in optimizer.param_groups for each in group["params"]]
            state[f"moments of {name}"] = []
            for moments in optimizer.state.values():
                for key, value in moments.items():
                    state[f"moments of {name}" if key == "exp_avg" else ""].append(value)
        return {name: tensors for name, tensors in state.items() if tensors}

    def _run(self) -> None:
        """The step, from the batch to the optimizers."""
        trainer = self._trainer
        trainer.optimizers.zero_grad_all()
        with self._reading_what_is_written():
            with torch.autocast(self._device.type, enabled=trainer.mixed_precision):
                _, losses, metrics = self._model.training_step(*self._drawn)
                total = functools.reduce(torch.add, losses.values())
            total.backward()
            trainer.optimizers.optimizer_scaler_step_all(trainer.grad_scaler)
        self._names = list(losses), list(metrics)
        self._values = torch.stack([each.detach().float() for each in (total, *losses.values(), *metrics.values())])

    @contextlib.contextmanager
    def _reading_what_is_written(self) -> Iterator[None]:
        """Puts tensors in place of the numbers that change; who looks from outside finds numbers."""
        numbers = [group["lr"] for group in self._groups]
        self._model.paces_on_device = self._paces
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            self._model.paces_on_device = None
            for group, number in zip(self._groups, numbers, strict=True):
                group["lr"] = number


def _write(state: Mapping[str, list[Tensor]], values: Mapping[str, list[Tensor]]) -> None:
    for name, copies in values.items():
        torch._foreach_copy_(state[name], copies)


def _copied(tensors: list[Tensor]) -> list[Tensor]:
    return [each.detach().clone() for each in tensors]


def _share(found: list[Tensor], usual: list[Tensor], before: list[Tensor]) -> Tensor:
    """How far what was found is from the usual, of how far that is from what was before."""
    off, changed = (
        torch.stack(torch._foreach_norm(torch._foreach_sub(usual, each))).norm() for each in (found, before)
    )
    return off / changed.clamp_min(torch.finfo(changed.dtype).tiny)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors of a value, such as rays and their batch, in order."""
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_of(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_of(each)
