"""Settings by device, checkpoints, and training that goes on exactly where it stopped."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_run
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import Optimizers

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.checkpoints import CheckpointError
from divff_nerfstudio.evaluation.runs import our_configs
from divff_nerfstudio.registry import divff, divff_paper, divff_splat
from divff_nerfstudio.resumption import random_state, restore_random_state
from divff_nerfstudio.run_config import read_config
from divff_nerfstudio.schema import OptionError
from divff_nerfstudio.trainer import DivFFTrainer, DivFFTrainerConfig, TrainingError

STEPS = 12


def fresh(device: str = "cpu") -> DivFFTrainerConfig:
    config = copy.deepcopy(divff.config)
    assert isinstance(config, DivFFTrainerConfig)
    config.machine.device_type = device  # pyright: ignore[reportAttributeAccessIssue]
    return config


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_settles_by_device(device):
    config = fresh(device)
    config.settle()
    steps, model = config.max_num_iterations, config.pipeline.model
    assert (steps, config.pipeline.datamanager.train_num_rays_per_batch) == (
        (5000, 512) if device == "cpu" else (10000, 4096)
    )
    assert model.fields.implementation == "planes"
    assert model.fields.static_resolutions == ((64, 256) if device == "cpu" else (128, 512))
    phases = [model.moving_start_step, model.heads_start_step, model.joint_start_step]
    assert phases == ([600, 3750, 4600] if device == "cpu" else [1200, 7500, 9200])
    assert all(group["scheduler"].max_steps == steps for group in config.optimizers.values())
    again = copy.deepcopy(config)
    again.settle()
    assert again == config


def test_keeps_what_the_user_has_chosen():
    config = fresh()
    config.max_num_iterations = 70
    config.pipeline.datamanager.train_num_rays_per_batch = 9
    model = config.pipeline.model
    model.fields.implementation, model.moving_start_step, model.heads_start_step, model.joint_start_step = (
        "hash",
        3,
        40,
        50,
    )
    model.fields.dynamic_resolutions, model.fields.actor_hidden = (32,), 48
    config.settle()
    assert (model.fields.dynamic_resolutions, model.fields.actor_hidden) == ((32,), 48)
    assert config.max_num_iterations == 70 and config.pipeline.datamanager.train_num_rays_per_batch == 9
    assert (model.fields.implementation, model.moving_start_step, model.heads_start_step, model.joint_start_step) == (
        "hash",
        3,
        40,
        50,
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 49, 50, 51, 99, 100, 5000])
def test_learning_rates_of_short_runs_too_are_finite_and_not_negative(steps):
    config = fresh()
    config.max_num_iterations = steps
    config.settle()
    chosen = config.optimizers["grids"]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=chosen["optimizer"].lr)
    scheduler = chosen["scheduler"].setup().get_scheduler(optimizer, lr_init=chosen["optimizer"].lr)
    rates = []
    for _ in range(steps):
        optimizer.step()
        rates.append(scheduler.get_last_lr()[0])
        scheduler.step()
    assert min(rates) >= 0 and max(rates) <= chosen["optimizer"].lr * (1 + 1e-6)
    assert steps < 2 or max(rates) > chosen["optimizer"].lr / 2


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"heads_start_step": 5}, (5, 5, 92)),
        ({"joint_start_step": 40}, (12, 40, 40)),
        ({"moving_start_step": 80}, (80, 80, 92)),
        ({"heads_start_step": 1000}, (12, 1000, 1000)),
    ],
)
def test_steps_that_were_not_chosen_give_way(chosen, expected):
    config = fresh()
    config.max_num_iterations = 100
    model = config.pipeline.model
    for name, step in chosen.items():
        setattr(model, name, step)
    config.settle()
    assert (model.moving_start_step, model.heads_start_step, model.joint_start_step) == expected
    config.settle()
    assert (model.moving_start_step, model.heads_start_step, model.joint_start_step) == expected


@pytest.mark.parametrize(
    "settings", [{"moving_start_step": -5}, {"moving_start_step": 50, "heads_start_step": 40}, {"heads_start_step": -1}]
)
def test_a_schedule_that_makes_no_sense_is_refused(settings):
    config = fresh()
    for name, step in settings.items():
        setattr(config.pipeline.model, name, step)
    with pytest.raises((TrainingError, OptionError), match=r"do not ascend|should be greater than or equal to 0"):
        config.settle()


@pytest.mark.parametrize("method", [divff, divff_paper, divff_splat])
def test_negative_counts_are_refused(method):
    config = copy.deepcopy(method.config)
    config.max_num_iterations = -3
    with pytest.raises(OptionError, match="--max-num-iterations is -3"):
        config.settle()
    config.max_num_iterations, config.pipeline.datamanager.train_num_rays_per_batch = 10, -2
    with pytest.raises(OptionError, match="train-num-rays-per-batch is -2"):
        config.settle()


def test_an_output_folder_that_cannot_be_written_is_named(tiny_scene, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"file/.* cannot be written .*--output-dir"):
        tiny_run.config(tiny_scene, tmp_path / "file").save_config()


def test_another_layout_of_scenes_is_refused_before_anything_is_written(tiny_scene, tmp_path):
    config = tiny_run.config(tiny_scene, tmp_path / "out")
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig(data=tiny_scene)
    with pytest.raises(TrainingError, match=r"EPIC-Diff's layout, not .*NerfstudioDataParserConfig.*divff convert"):
        config.save_config()
    assert not (tmp_path / "out").exists()


def test_config_is_written_settled_and_passes_the_check(tiny_scene, tmp_path):
    config = tiny_run.config(tiny_scene, tmp_path)
    config.save_config()
    path = config.get_base_dir() / "config.yml"
    read_config(path, our_configs())
    text = path.read_text()
    assert "implementation: planes" in text and "heads_start_step: 9\n" in text


Start = Callable[..., DivFFTrainer]


@pytest.fixture
def start(tiny_scene: Path, tmp_path: Path) -> Start:
    """Sets a training up; features are written for it first, so that heads are trained, too."""
    tiny_run.write_features(tiny_scene, tmp_path / "encoder")

    def begin(name: str, seed: int = 0, **changes) -> DivFFTrainer:
        config = tiny_run.config(tiny_scene, tmp_path / name, STEPS)
        for key, value in changes.items():
            setattr(config, key, value)
        torch.manual_seed(seed)
        trainer = tiny_run.trainer_of(config)
        trainer.setup()
        return trainer

    return begin


@pytest.mark.parametrize("broken_after", [1, 6, 10])
def test_resumed_training_is_the_unbroken_one(start: Start, broken_after):
    """Broken in each phase of the schedule: static alone or all layers, with frozen geometry, together."""
    looked_at = {"steps_per_eval_batch": 3, "steps_per_eval_image": 7, "steps_per_eval_all_images": 11}
    unbroken = start("unbroken", steps_per_save=broken_after, save_only_latest_checkpoint=False, **looked_at)
    unbroken.train()
    folder = unbroken.checkpoint_dir
    resumed = start("resumed", seed=99, load_dir=folder, load_step=broken_after, **looked_at)
    before = tiny_run.parameters(resumed.pipeline.model)
    resumed.train()
    assert resumed.step == unbroken.step == STEPS - 1
    expected, found = tiny_run.parameters(unbroken.pipeline.model), tiny_run.parameters(resumed.pipeline.model)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-6), name
    assert any(not torch.equal(before[name], value) for name, value in found.items())
    rates = [[group["lr"] for group in each.param_groups] for each in _optimizers(unbroken)]
    assert rates == [[group["lr"] for group in each.param_groups] for each in _optimizers(resumed)]


def _optimizers(trainer: DivFFTrainer) -> list[torch.optim.Optimizer]:
    assert isinstance(trainer.optimizers, Optimizers)
    return list(trainer.optimizers.optimizers.values())


@pytest.mark.parametrize("broken_in", [1, 6])
def test_ctrl_c_loses_no_step(start: Start, monkeypatch, broken_in):
    """What is resumed after it is the unbroken run; then Ctrl-C works as before."""
    unbroken = start("unbroken")
    unbroken.train()
    interrupted, usual = start("interrupted"), signal.getsignal(signal.SIGINT)
    follow = interrupted.train_iteration

    def press(step: int):
        if step == broken_in:
            signal.raise_signal(signal.SIGINT)
        return follow(step)

    monkeypatch.setattr(interrupted, "train_iteration", press)
    with pytest.raises(SystemExit) as ended:
        interrupted.train()
    assert ended.value.code == 130 and signal.getsignal(signal.SIGINT) is usual
    assert [path.name for path in interrupted.checkpoint_dir.iterdir()] == [f"step-{broken_in:09d}.ckpt"]
    resumed = start("resumed", seed=99, load_dir=interrupted.checkpoint_dir)
    resumed.train()
    expected, found = tiny_run.parameters(unbroken.pipeline.model), tiny_run.parameters(resumed.pipeline.model)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-6), name


def test_ctrl_c_twice_ends_at_once(start: Start, monkeypatch):
    trainer, usual = start("run"), signal.getsignal(signal.SIGINT)

    def press(step: int):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was swallowed")

    monkeypatch.setattr(trainer, "train_iteration", press)
    with pytest.raises(SystemExit) as ended:
        trainer.train()
    assert ended.value.code == 130 and signal.getsignal(signal.SIGINT) is usual


def test_a_finished_run_is_not_overwritten_by_resuming(start: Start):
    first = start("first")
    first.train()
    assert first.config.max_num_iterations == STEPS
    again = start("again", load_dir=first.checkpoint_dir)
    with pytest.raises(TrainingError, match=f"{STEPS} of {STEPS} steps"):
        again.train()
    assert not again.checkpoint_dir.exists()


def test_more_steps_do_not_let_trained_heads_rest(start: Start, tiny_scene: Path, tmp_path: Path):
    first = start("first")
    first.train()
    config = tiny_run.config(tiny_scene, tmp_path, 10 * STEPS)
    config.load_dir = first.checkpoint_dir
    longer = tiny_run.trainer_of(config)
    with pytest.raises(TrainingError, match=f"heads-start-step {STEPS} --pipeline.model.joint-start-step {STEPS},"):
        longer.setup()
    config = tiny_run.config(tiny_scene, tmp_path, STEPS + 2)
    config.load_dir = first.checkpoint_dir
    config.pipeline.model.heads_start_step = config.pipeline.model.joint_start_step = STEPS
    longer = tiny_run.trainer_of(config)
    longer.setup()
    longer.train()
    assert longer.step == STEPS + 1 and longer.pipeline.model.features_trained


def test_configurations_say_how_heads_go_on(tiny_scene: Path, tmp_path: Path):
    ours = tiny_run.config(tiny_scene, tmp_path, STEPS).pipeline.model
    assert "--pipeline.model.joint-start-step 3" in ours.heads_go_on_by(3)
    assert "number of steps" in divff_paper.config.pipeline.model.heads_go_on_by(3)


def test_checkpoint_is_whole_safe_and_alone(start: Start, monkeypatch):
    trainer = start("run")
    folder = trainer.checkpoint_dir
    trainer.save_checkpoint(3)
    trainer.save_checkpoint(4)
    assert [path.name for path in folder.iterdir()] == ["step-000000004.ckpt"]
    state = torch.load(folder / "step-000000004.ckpt", weights_only=True)
    assert state["step"] == 4 and state["pipeline"].keys() == trainer.pipeline.state_dict().keys()

    def interrupted(state, path):
        Path(path).write_bytes(b"half")
        assert [found.name for found in folder.iterdir()] == ["step-000000004.ckpt"]
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(5)
    assert [path.name for path in folder.iterdir()] == ["step-000000004.ckpt"]
    assert not list(folder.parent.rglob("*step-000000005*"))


def test_unreadable_and_missing_checkpoints_are_named(start: Start, tmp_path):
    bad = tmp_path / "step-000000001.ckpt"
    with atomic_path(bad) as path:
        path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="no readable checkpoint") as error:
        start("bad", load_checkpoint=bad)
    assert "weights_only" not in str(error.value)
    foreign = tmp_path / "foreign.ckpt"
    with atomic_path(foreign) as path:
        torch.save({"state_dict": {}, "step": 3}, path)
    with pytest.raises(TrainingError, match=r"no checkpoint of a run.*divff import"):
        start("foreign", load_checkpoint=foreign)
    with pytest.raises(TrainingError, match="does not exist"):
        start("missing", load_dir=tmp_path, load_step=7)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        start("empty", load_dir=tmp_path / "empty")


def test_random_state_is_restored():
    state = random_state(resident=False)
    drawn = torch.rand(3)
    torch.rand(5)
    restore_random_state(state, resident=False)
    assert torch.equal(torch.rand(3), drawn)
