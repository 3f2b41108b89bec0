"""Captured steps do what steps one by one do, bit by bit, on whatever lies where they read."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from nerfstudio.engine.optimizers import RAdamOptimizerConfig
from recorded_graph import RecordedGraph, Recorder
from torch import Tensor

from divff_nerfstudio import captured_steps, card
from divff_nerfstudio.captured_steps import WARM_UP
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.fields.space import SceneSpace
from divff_nerfstudio.models.divff import DivFFModel
from divff_nerfstudio.trainer import TrainingError

METHODS = {"divff": tiny_run.config, "divff-paper": tiny_run.published_config, "divff-splat": tiny_run.splat_config}
STEPS = 50


class Refusing:
    """A card that captures nothing."""

    def __init__(self, work: Any):
        raise RuntimeError("operation not permitted\nmore of it")


def started(method: str, scene: Path, output: Path, graph: Any = RecordedGraph, **changes: Any) -> Any:
    """A tiny training with features, ready to begin; it has the graphs that it makes, and which steps they take."""
    config = METHODS[method](scene, output, STEPS)
    config.cuda_graphs = "on"
    for key, value in changes.items():
        setattr(config.pipeline.model.fields if key == "implementation" else config, key, value)
    trainer: Any = tiny_run.trainer_of(config)
    torch.manual_seed(0)
    trainer.setup()
    trainer.graphs, trainer.taken_by_graph = [], []
    captured_steps.CardGraph = lambda work, stream: trainer.graphs.append(graph(work)) or trainer.graphs[-1]
    return trainer


@pytest.fixture
def scene(tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scene with features, on what passes for a card."""
    tiny_run.write_features(tiny_scene, tmp_path / "encoder")
    # Read from a card once, and then known.
    monkeypatch.setattr(SceneSpace, "known_length", functools.lru_cache(SceneSpace.known_length))
    monkeypatch.setattr(captured_steps, "is_card", lambda device: True)
    monkeypatch.setattr(captured_steps, "beside", lambda stream: Recorder())
    monkeypatch.setattr(captured_steps, "CardGraph", captured_steps.CardGraph)
    return tiny_scene


def trained(trainer: Any) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Parameters after a training, and losses and metrics of its steps."""
    told, take = [], trainer.train_iteration

    def listening(step: int) -> Any:
        found = take(step)
        told.append({"loss": found[0], **found[1], **found[2]})
        trainer.taken_by_graph.append(trainer.by_graph)
        return found

    trainer.train_iteration = listening
    trainer.train()
    return tiny_run.parameters(trainer.pipeline.model), told


def assert_same(found: tuple[Any, list[Any]], expected: tuple[Any, list[Any]]) -> None:
    """Parameters and all that was told are the same to the last bit."""
    (parameters, told), (expected_parameters, expected_told) = found, expected
    for step, (one, other) in enumerate(zip(told, expected_told, strict=True)):
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == [], step
    assert parameters.keys() == expected_parameters.keys()
    for name, value in parameters.items():
        assert torch.equal(value, expected_parameters[name]), name


@pytest.mark.parametrize("method", ["divff", "divff-paper"])
def test_captured_steps_are_the_steps_that_are_not_captured(scene, tmp_path, method, capsys):
    between = {"steps_per_eval_batch": 7, "steps_per_eval_image": 9, "steps_per_save": 10}
    captured = started(method, scene, tmp_path / "captured", **between)
    found = trained(captured)
    parts = {captured.pipeline.model.schedule.part(step) for step in range(STEPS)}
    assert len(captured.graphs) == len(parts) == (4 if method == "divff" else 2)
    assert sum(graph.replays for graph in captured.graphs) == STEPS - WARM_UP * len(parts)
    eager = started(method, scene, tmp_path / "eager", graph=Refusing, **between)
    assert_same(found, trained(eager))
    assert captured.taken_by_graph[-1] and not any(eager.taken_by_graph)
    said = capsys.readouterr().out
    assert said.count("without CUDA graphs: operation not permitted") == 1 and "more of it" not in said


@pytest.mark.parametrize("method", ["divff", "divff-paper"])
def test_they_are_nerfstudios_steps_but_for_rounding(scene, tmp_path, method):
    runs = [trained(started(method, scene, tmp_path / mode, cuda_graphs=mode))[1][:12] for mode in ("on", "off")]
    for one, other in zip(*runs, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, other[name].detach(), rtol=1e-3, atol=1e-4)


def test_a_number_of_the_host_that_follows_the_step_is_seen_to_be_one(scene, tmp_path, monkeypatch):
    usual = DivFFModel._persistence
    monkeypatch.setattr(DivFFModel, "_persistence", lambda self, outputs: self.step * usual(self, outputs))
    found = trained(started("divff", scene, tmp_path / "captured"))
    with pytest.raises(AssertionError):
        assert_same(found, trained(started("divff", scene, tmp_path / "eager", graph=Refusing)))


def test_a_graph_that_does_something_else_than_the_step_is_given_up(scene, tmp_path, monkeypatch, capsys):
    usual = DivFFModel._persistence
    monkeypatch.setattr(DivFFModel, "_persistence", lambda self, outputs: 10 * self.step * usual(self, outputs))
    trainer = started("divff", scene, tmp_path / "captured", save_only_latest_checkpoint=False)
    trainer.train()
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("a captured step does something else than the step (") == 1
    assert "than the step (the loss" in said
    assert sum(graph.replays for graph in trainer.graphs) < STEPS / 2 and trainer._trained == STEPS - 1


def test_so_is_one_that_leaves_an_update_out(scene, tmp_path, capsys):
    class Idle(RecordedGraph):
        def __init__(self, work: Any):
            super().__init__(work)
            self._recorder.done = [each for each in self._recorder.done if "adam" not in str(each[0])]

    trained(started("divff", scene, tmp_path, graph=Idle))
    said = " ".join(capsys.readouterr().out.split())
    assert "than the step (parameters of " in said and ", moments of " in said and "the loss" not in said


@pytest.mark.parametrize("where", ["_copied", "_share"])
def test_a_graph_that_leaves_no_memory_for_a_check_is_given_up(scene, tmp_path, monkeypatch, capsys, where):
    monkeypatch.setattr(captured_steps, where, lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    found = trained(started("divff", scene, tmp_path / "full"))
    assert capsys.readouterr().out.count("there is no memory for a step beside them") == 1
    assert_same(found, trained(started("divff", scene, tmp_path / "eager", graph=Refusing)))


def test_a_check_leaves_nothing_behind(scene, tmp_path, monkeypatch):
    often = trained(started("divff", scene, tmp_path / "often"))
    monkeypatch.setattr(captured_steps, "FIRST_CHECKS", ())
    assert_same(trained(started("divff", scene, tmp_path / "never")), often)


def test_a_graph_at_which_the_card_fails_ends_the_training(scene, tmp_path):
    class Failing(RecordedGraph):
        def replay(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")

    trainer = started("divff", scene, tmp_path, graph=Failing)
    with pytest.raises(TrainingError, match=r"illegal memory access was encountered\): .* --cuda-graphs off"):
        trainer.train()


def test_a_failed_capture_is_left_behind(monkeypatch):
    done: list[Any] = []
    generator = types.SimpleNamespace(
        clone_state=lambda: "copy",
        graphsafe_set_state=done.append,
        get_state=lambda: "state",
        set_state=done.append,
    )

    @contextlib.contextmanager
    def capturing(graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("capture has failed")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "usual")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.ExitStack())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    monkeypatch.setattr(torch, "rand", lambda size, device: None)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *args: done.append(args), raising=False)

    def work() -> None:
        raise RuntimeError("not permitted when a stream is capturing")

    with pytest.raises(RuntimeError, match="capture has failed") as raised:
        card.CardGraph(work, None)
    assert str(raised.value.__context__) == "not permitted when a stream is capturing"
    assert done == ["copy", (0, (0, 7)), (0, (0, 7)), "state"]

    def stuck(*size: int, device: Any) -> None:
        raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    monkeypatch.setattr(torch, "rand", stuck)
    with pytest.raises(DivffError, match="--cuda-graphs off, or with a newer torch"):
        card.CardGraph(work, None)


def test_a_resumed_training_is_the_unbroken_one(scene, tmp_path):
    unbroken = started("divff", scene, tmp_path / "unbroken", steps_per_save=20, save_only_latest_checkpoint=False)
    parameters, told = trained(unbroken)
    again = {"load_dir": unbroken.checkpoint_dir, "load_step": 20}
    assert_same(trained(started("divff", scene, tmp_path / "resumed", **again)), (parameters, told[21:]))
    eager = started("divff", scene, tmp_path / "eager", cuda_graphs="off", **again)
    groups = [group for each in eager.optimizers.optimizers.values() for group in each.param_groups]
    assert all(type(group["lr"]) is float and not group["capturable"] for group in groups)
    for one, other in zip(trained(eager)[1], told[21:], strict=True):
        torch.testing.assert_close(one["loss"].detach(), other["loss"], rtol=0.1, atol=0.1)


def test_what_is_not_finite_ends_the_training(scene, tmp_path):
    trainer = started("divff", scene, tmp_path)
    take = trainer.train_iteration

    def spoiled(step: int) -> Any:
        if step == 20:
            next(trainer.pipeline.model.field.parameters()).data.fill_(float("nan"))
        return take(step)

    trainer.train_iteration = spoiled
    with pytest.raises(TrainingError, match=r"not finite (at|after) step 20"):
        trainer.train()
    assert len(trainer.graphs) == 2


@pytest.mark.parametrize(
    ("method", "changes", "why"),
    [
        ("divff-splat", {}, "divff-splat cannot be captured: it changes in size"),
        ("divff", {"use_grad_scaler": True}, "--use-grad-scaler"),
        ("divff", {"gradient_accumulation_steps": {"grids": 2}}, "--gradient-accumulation-steps"),
        ("divff", {"implementation": "hash"}, "hash encodings"),
        ("divff", {"log_gradients": True}, "--log-gradients"),
        ("divff", {"optimizers": "RAdam"}, "the optimizer RAdam"),
        ("divff", {}, "they need a CUDA device"),
    ],
)
def test_what_cannot_be_captured_is_trained_step_by_step(scene, tmp_path, monkeypatch, capsys, method, changes, why):
    config = METHODS[method](scene, tmp_path, 4)
    if changes.get("optimizers"):
        changes = {
            "optimizers": {
                name: {**each, "optimizer": RAdamOptimizerConfig()} for name, each in config.optimizers.items()
            }
        }
    if "CUDA" in why:
        monkeypatch.setattr(captured_steps, "is_card", lambda device: False)
    trainer = started(method, scene, tmp_path, max_num_iterations=4, **changes)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", enabled=trainer.config.use_grad_scaler)
    trainer.train()
    assert not trainer.graphs and trainer._trained == 3
    assert why in " ".join(capsys.readouterr().out.split())
