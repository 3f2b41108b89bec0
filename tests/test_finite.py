"""Nothing that is not finite goes on: training stops, keeps what was good, and does not begin with what is not."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch

from divff_nerfstudio.checkpoints import CheckpointError
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.finite import FiniteWatch, not_finite
from divff_nerfstudio.trainer import DivFFTrainer, TrainingError

STEPS = 8
METHODS = {"divff": tiny_run.config, "paper": tiny_run.published_config, "splat": tiny_run.splat_config}


def start(method: str, scene: Path, output: Path, **changes: Any) -> DivFFTrainer:
    config = METHODS[method](scene, output, STEPS)
    config.pipeline.datamanager.features = "none"
    for key, value in changes.items():
        setattr(config, key, value)
    trainer = tiny_run.trainer_of(config)
    trainer.setup()
    return trainer


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["loss", "parameter"])
def test_training_stops_at_once_and_the_last_good_checkpoint_stays(tiny_scene, tmp_path, monkeypatch, method, what):
    trainer = start(method, tiny_scene, tmp_path, steps_per_save=2)
    given, steps = trainer.pipeline.get_train_loss_dict, []

    def spoiled(step: int):
        steps.append(step)
        outputs, losses, metrics = given(step)
        if step == 4 and what == "loss":
            losses = losses | {"photometric": next(iter(losses.values())) * float("nan")}
        if step == 4 and what == "parameter":
            for parameter in trainer.pipeline.model.parameters():
                parameter.register_hook(lambda grad: grad * float("nan"))
        return outputs, losses, metrics

    monkeypatch.setattr(trainer.pipeline, "get_train_loss_dict", spoiled)
    said = "the loss photometric is not finite at step 4" if what == "loss" else "the parameter .* is not finite"
    with pytest.raises(TrainingError, match=said) as error:
        trainer.train()
    assert steps[-1] == 4 and "\n" not in str(error.value)
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000002.ckpt"]
    assert "step-000000002.ckpt stays" in str(error.value)


def test_ns_train_says_so_in_one_sentence_and_ends_with_status_1(tiny_scene, tmp_path):
    words = {
        "--data": tiny_scene,
        "--output-dir": tmp_path / "out",
        "--vis": "tensorboard",
        "--max-num-iterations": 400,
        "--steps-per-save": 1,
        "--machine.device-type": "cpu",
        "--pipeline.datamanager.features": "none",
        "--pipeline.datamanager.train-num-rays-per-batch": 32,
        "--optimizers.grids.optimizer.lr": 1e15,
        "--optimizers.networks.optimizer.lr": 1e15,
    }
    line = [
        str(Path(sys.executable).with_name("ns-train")),
        "divff",
        *(str(word) for pair in words.items() for word in pair),
    ]
    sizes = [
        "--pipeline.model.fields.static-resolutions",
        "8",
        "16",
        "--pipeline.model.fields.dynamic-resolutions",
        "8",
    ]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*line, *sizes], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "Error: Training has stopped because the loss " in said and "Traceback" not in said
    (left,) = (tmp_path / "out").rglob("*.ckpt")
    assert f"{left} stays" in " ".join(said.split())
    assert all(value.isfinite().all() for value in torch.load(left, weights_only=True)["pipeline"].values())


def test_a_gpu_is_looked_at_now_and_then_and_the_first_step_is_told(monkeypatch):
    monkeypatch.setitem(__import__("divff_nerfstudio.finite").finite.STEPS_BETWEEN_LOOKS, "cpu", 5)
    watch, parameters = FiniteWatch("cpu"), [("w", torch.ones(3))]
    values = [1.0, 2.0, float("inf"), float("nan"), 1.0]
    found = [
        watch.look(step, {"a": torch.tensor(1.0), "b": torch.tensor(v)}, parameters) for step, v in enumerate(values)
    ]
    assert found == [None] * 4 + ["the loss b is not finite at step 2"]
    watch.look(5, {"a": torch.tensor(float("nan"))}, parameters)
    assert watch.look_now(5, parameters) == "the loss a is not finite at step 5"


def test_large_values_are_finite():
    assert not_finite([("large", torch.full((4,), 3e38)), ("whole", torch.ones(2, dtype=torch.long))]) is None
    assert not_finite([("good", torch.ones(2)), ("bad", torch.tensor([1.0, float("-inf")]))]) == "bad"


def test_a_checkpoint_is_never_written_with_it(tiny_scene, tmp_path):
    trainer = start("divff", tiny_scene, tmp_path)
    trainer.save_checkpoint(1)
    with torch.no_grad():
        next(each for each in trainer.pipeline.model.parameters() if each.numel()).view(-1)[0] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        trainer.save_checkpoint(2)
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000001.ckpt"]


def moment(state: dict, key: str) -> torch.Tensor:
    return next(iter(state["optimizers"]["networks"]["state"].values()))[key]


def weight(state: dict) -> tuple[dict, str]:
    name = next(name for name, value in state["pipeline"].items() if value.is_floating_point() and value.numel() > 1)
    return state["pipeline"], name


def spoil(state: dict, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    holder, name = weight(state)
    holder[name] = change(holder[name])


DAMAGE: dict[str, tuple[Callable[[dict], object], str]] = {
    "a weight that is NaN": (lambda s: spoil(s, lambda w: w * float("nan")), "not finite"),
    "a weight in half precision": (lambda s: spoil(s, torch.Tensor.half), "float16"),
    "a weight in double precision": (lambda s: spoil(s, torch.Tensor.double), "float64"),
    "a weight of another shape": (lambda s: spoil(s, lambda w: w[:1]), "differ"),
    "a weight that is none": (lambda s: s["pipeline"].update({weight(s)[1]: 3}), "no tensor"),
    "a moment that is NaN": (lambda s: moment(s, "exp_avg").fill_(float("nan")), "exp_avg .*not finite"),
    "a moment that is infinite": (lambda s: moment(s, "exp_avg_sq").fill_(float("inf")), "exp_avg_sq .*not finite"),
    "a moment of another shape": (
        lambda s: next(iter(s["optimizers"]["networks"]["state"].values())).update(exp_avg=torch.zeros(1, 1, 1)),
        "another shape",
    ),
    "a learning rate that is NaN": (
        lambda s: s["optimizers"]["networks"]["param_groups"][0].update(lr=float("nan")),
        "settings",
    ),
    "an unknown optimizer": (lambda s: s["optimizers"].update(more=s["optimizers"]["networks"]), "optimizer more"),
    "fewer parameters": (lambda s: s["optimizers"]["networks"]["param_groups"][0]["params"].pop(), "other parameters"),
    "a step below 0": (lambda s: s.update(step=-7), "-7"),
    "a step beyond all": (lambda s: s.update(step=10**12), "10{12}|1000000000000"),
    "a step that is no number": (lambda s: s.update(step="many"), "many"),
    "a step of another name": (lambda s: s.update(step=5), "not the one that its name tells"),
    "an optimizer's step that is infinite": (lambda s: moment(s, "step").fill_(float("inf")), "step of its optimizer"),
    "schedulers that are not finite": (
        lambda s: next(iter(s["schedulers"].values())).update(_last_lr=[float("nan")]),
        "schedulers",
    ),
    "optimizers that are a list": (lambda s: s.update(optimizers=[1]), "damaged"),
    "random numbers that are none": (lambda s: s.update(random={}), "damaged"),
    "a pipeline that is none": (lambda s: s.update(pipeline=7), "damaged"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    from conftest import write_tiny_scene

    root = tmp_path_factory.mktemp("trained")
    trainer = start("divff", write_tiny_scene(root / "tiny"), root / "run")
    trainer.config.max_num_iterations = 3
    trainer.train()
    return root / "tiny", torch.load(trainer.checkpoint_dir / "step-000000002.ckpt", weights_only=True)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_refused_at_the_door(trained, tmp_path, damage):
    scene, state = trained
    change, said = DAMAGE[damage]
    state, path = copy.deepcopy(state), tmp_path / "step-000000002.ckpt"
    change(state)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=said) as error:
        start("divff", scene, tmp_path / "resumed", load_checkpoint=path)
    assert isinstance(error.value, DivffError) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_whole_is_taken(trained, tmp_path):
    scene, state = trained
    path = tmp_path / "step-000000002.ckpt"
    torch.save(state, path)
    start("divff", scene, tmp_path / "resumed", load_checkpoint=path).train()
