"""The folder of a run: one training at a time, nothing that was trained is lost, nothing unfinished stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import torch
import yaml

from divff_nerfstudio.data.frames import SceneError
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.registry import divff  # installs the guard of configurations
from divff_nerfstudio.trainer import DivFFTrainerConfig, TrainingError

STEPS = 4
assert divff


def config(scene: Path, output: Path, **changes) -> DivFFTrainerConfig:
    chosen = tiny_run.config(scene, output, STEPS)
    chosen.pipeline.datamanager.features = "none"
    for key, value in changes.items():
        setattr(chosen, key, value)
    return chosen


def train(chosen: DivFFTrainerConfig) -> Path:
    """As ns-train does it; returns the folder of checkpoints."""
    chosen.set_timestamp()
    chosen.save_config()
    trainer = tiny_run.trainer_of(chosen)
    trainer.setup()
    trainer.train()
    return trainer.checkpoint_dir


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("option", ["timestamp", "experiment_name", "method_name"])
@pytest.mark.parametrize("name", ["../..", "a/../../b", "/elsewhere", "", "."])
def test_names_that_lead_out_of_the_folder_for_runs_are_refused(option, name, tiny_scene, tmp_path):
    chosen = config(tiny_scene, tmp_path / "runs", **{option: name})
    with pytest.raises(TrainingError, match=f"--{option.replace('_', '-')} '{name}' .*--output-dir"):
        chosen.set_timestamp()
    assert names(tmp_path) == ["tiny"]


@pytest.mark.parametrize("place", ["../..", "/elsewhere"])
def test_places_that_lead_out_of_a_run_are_refused_as_they_are_when_it_is_opened(place, tiny_scene, tmp_path):
    chosen = config(tiny_scene, tmp_path / "runs", relative_model_dir=Path(place))
    with pytest.raises(TrainingError, match="--relative-model-dir leads out of the run's folder"):
        chosen.set_timestamp()


def test_the_second_training_is_refused_before_it_writes(tiny_scene, tmp_path):
    first = config(tiny_scene, tmp_path)
    first.save_config()
    text = (first.get_base_dir() / "config.yml").read_bytes()
    before = names(first.get_base_dir())
    second = config(tiny_scene, tmp_path, steps_per_save=77)
    with pytest.raises(TrainingError, match=r"Another training writes to .*another --timestamp") as error:
        second.save_config()
    assert "\n" not in str(error.value) and names(first.get_base_dir()) == before
    assert (first.get_base_dir() / "config.yml").read_bytes() == text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
@pytest.mark.parametrize(("kind", "said"), [("cuda", "no CUDA card here"), ("mps", "trains on cuda or cpu")])
def test_a_device_that_is_not_there_is_told(tiny_scene: Path, tmp_path: Path, kind: str, said: str) -> None:
    asked = config(tiny_scene, tmp_path / "runs")
    asked.machine.device_type = kind
    with pytest.raises(DivffError, match=said):
        asked.save_config()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("machine", [{"num_devices": 2}, {"num_machines": 2}, {"num_devices": 0}])
def test_several_cards_for_one_scene_are_refused_before_anything_is_written(tiny_scene, tmp_path, machine):
    several = config(tiny_scene, tmp_path / "runs")
    for name, value in machine.items():
        setattr(several.machine, name, value)
    with pytest.raises(TrainingError, match=r"in one process: leave --machine.num-devices .*`divff batch`"):
        several.save_config()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("beside", [False, True])
def test_nothing_is_left_of_a_training_that_does_not_begin(tiny_scene: Path, tmp_path: Path, beside: bool) -> None:
    """Neither config.yml, which nothing could open, nor its folder; what somebody else has put there stays."""
    chosen = config(tiny_scene, tmp_path / "runs")
    chosen.set_timestamp()
    chosen.save_config()
    if beside:
        (chosen.get_base_dir() / "notes.txt").write_text("why")
    (tiny_scene / "meta.json").unlink()
    with pytest.raises(SceneError, match=r"meta\.json is missing"):
        tiny_run.trainer_of(chosen).setup()
    left = [path.relative_to(chosen.get_base_dir()) for path in chosen.get_base_dir().rglob("*")]
    assert left == ([Path("notes.txt")] if beside else []) and chosen.get_base_dir().exists() == beside


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, TrainingError])
def test_nor_of_one_that_ends_in_its_first_step(
    tiny_scene, tmp_path, monkeypatch, stopped: type[BaseException]
) -> None:
    def broken(*_: object) -> None:
        raise stopped

    chosen = config(tiny_scene, tmp_path / "runs")
    chosen.set_timestamp()
    chosen.save_config()
    trainer = tiny_run.trainer_of(chosen)
    trainer.setup()
    monkeypatch.setattr(trainer.pipeline.datamanager, "next_train", broken)
    with pytest.raises(stopped):
        trainer.train()
    assert not (chosen.get_base_dir() / "config.yml").exists() and chosen.folder is None


def test_a_disk_that_goes_away_hides_no_reason(tiny_scene: Path, tmp_path: Path, monkeypatch) -> None:
    chosen = config(tiny_scene, tmp_path / "runs")
    chosen.set_timestamp()
    chosen.save_config()
    (tiny_scene / "meta.json").unlink()
    trainer = tiny_run.trainer_of(chosen)

    def gone(*_: object, **__: object) -> None:
        raise OSError("read-only")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", gone)
        with pytest.raises(SceneError, match=r"meta\.json is missing"):
            trainer.setup()
    assert chosen.folder is None
    chosen.claim()  # nobody else holds it


def test_a_run_that_cannot_go_on_is_left_alone(tiny_scene: Path, tmp_path: Path) -> None:
    done = train(config(tiny_scene, tmp_path, timestamp="one"))

    def kept() -> dict[Path, bytes]:  # without what a thread of the first training's may still write
        files = (path for path in done.parent.rglob("*") if path.is_file() and not path.name.startswith("events."))
        return {path: path.read_bytes() for path in files}

    before = kept()
    again = config(tiny_scene, tmp_path, timestamp="one", load_dir=done)
    again.set_timestamp()
    again.save_config()
    (tiny_scene / "meta.json").unlink()
    with pytest.raises(SceneError, match=r"meta\.json is missing"):
        tiny_run.trainer_of(again).setup()
    assert kept() == before


def test_steps_are_gathered_for_what_is_trained(tiny_scene: Path, tmp_path: Path) -> None:
    chosen = config(tiny_scene, tmp_path, gradient_accumulation_steps={"field": 2})
    with pytest.raises(TrainingError, match=r"names field, .* give one of grids, networks, actor, heads"):
        chosen.save_config()


def test_two_that_begin_in_one_second_get_folders_of_their_own(tiny_scene, tmp_path, monkeypatch):
    class Clock:
        @staticmethod
        def now():
            return Clock

        @staticmethod
        def strftime(_):
            return "noon"

    monkeypatch.setattr("nerfstudio.configs.experiment_config.datetime", Clock)
    made = [config(tiny_scene, tmp_path, timestamp="{timestamp}") for _ in range(3)]
    for each in made:
        each.set_timestamp()
        each.save_config()
    assert [each.timestamp for each in made] == ["noon", "noon-2", "noon-3"]
    assert all(f"timestamp: {each.timestamp}\n" in (each.get_base_dir() / "config.yml").read_text() for each in made)


def test_what_was_trained_is_not_trained_over(tiny_scene, tmp_path):
    folder = train(config(tiny_scene, tmp_path))
    whole = {path.name: path.read_bytes() for path in [*folder.iterdir(), folder.parent / "config.yml"]}
    elsewhere = train(config(tiny_scene, tmp_path, timestamp="other"))
    for changes in ({}, {"load_dir": elsewhere}, {"steps_per_save": 2}):
        with pytest.raises(
            TrainingError, match=r"holds what was trained, up to step-000000003\.ckpt: go on with it by"
        ):
            config(tiny_scene, tmp_path, **changes).save_config()
    assert {name: (folder / name if "step" in name else folder.parent / name).read_bytes() for name in whole} == whole


def test_a_run_goes_on_in_its_folder_from_its_last_checkpoint_alone(tiny_scene, tmp_path):
    folder = train(config(tiny_scene, tmp_path, steps_per_save=2, save_only_latest_checkpoint=False))
    assert names(folder) == ["step-000000002.ckpt", "step-000000003.ckpt"]
    with pytest.raises(
        TrainingError, match=r"behind step-000000002\.ckpt, up to step-000000003\.ckpt, which would be lost"
    ):
        config(tiny_scene, tmp_path, load_dir=folder, load_step=2, max_num_iterations=6).save_config()
    (folder / "best.ckpt").touch()
    train(config(tiny_scene, tmp_path, load_dir=folder, max_num_iterations=6))
    kept = ["best.ckpt", "step-000000002.ckpt", "step-000000003.ckpt", "step-000000005.ckpt"]
    assert names(folder) == kept, "all were kept, and still are"
    assert "max_num_iterations: 6\n" in (folder.parent / "config.yml").read_text()


def test_a_config_that_does_not_fit_does_not_replace_the_one_that_does(tiny_scene, tmp_path):
    folder = train(config(tiny_scene, tmp_path))
    text = (folder.parent / "config.yml").read_bytes()
    other = config(tiny_scene, tmp_path, load_dir=folder, max_num_iterations=9)
    other.pipeline.model.fields.hidden = 24
    with pytest.raises(RuntimeError, match=r"step-000000003\.ckpt"):
        train(other)
    with pytest.raises(TrainingError, match="4 of 2 steps"):
        train(config(tiny_scene, tmp_path, load_dir=folder, max_num_iterations=2))
    assert (folder.parent / "config.yml").read_bytes() == text and names(folder) == ["step-000000003.ckpt"]


def test_a_training_with_the_options_of_another_gets_a_folder_of_its_own(tiny_scene, tmp_path, capsys):
    folder = train(config(tiny_scene, tmp_path))
    checkpoint = (folder / "step-000000003.ckpt").read_bytes()
    again = yaml.load((folder.parent / "config.yml").read_text(), Loader=yaml.Loader)
    other = train(again)
    assert other != folder and names(other) == names(folder) == ["step-000000003.ckpt"]
    assert (folder / "step-000000003.ckpt").read_bytes() == checkpoint
    assert f"--load-dir {folder} --timestamp run" in " ".join(capsys.readouterr().out.split())
    assert "read_from_file" not in (other.parent / "config.yml").read_text()


KILLED = """
import os, signal, sys
from pathlib import Path
import tiny_run, torch, yaml
from test_training_folder import config, train
save = torch.save
def kill(state, path):
    if state["step"] == 2:
        Path(path).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, path)
torch.save = kill
train(config(Path(sys.argv[1]), Path(sys.argv[2]), steps_per_save=1))
"""


def test_what_a_killed_training_has_begun_goes_away(tiny_scene, tmp_path):
    """The half of a checkpoint, of config.yml, and a checkpoint that was not yet in its place; others' files stay."""
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tiny_scene), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": here},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr.decode()
    (folder,) = (tmp_path / "out").rglob("nerfstudio_models")
    run = folder.parent
    assert len(list(run.glob(".step-000000002.*.tmp.ckpt"))) == 1 and names(folder) == ["step-000000001.ckpt"]
    (run / "step-000000002.ckpt").write_bytes(b"half")
    (run / ".config.1-0123456789abcdef.tmp.yml").touch()
    others = [run / ".video.1-0123456789abcdef.tmp.mp4", run / "notes.ckpt", run / ".notes.tmp.txt"]
    for path in others:
        path.touch()
    train(config(tiny_scene, tmp_path / "out", load_dir=folder))
    assert names(folder) == ["step-000000003.ckpt"]
    assert all(path.exists() for path in others)
    left = {path for path in run.iterdir() if ".tmp" in path.name or path.suffix == ".ckpt"}
    assert left == set(others)


@pytest.mark.parametrize("method", ["config", "splat_config"])
def test_no_static_first_phase_can_be_asked_for(tiny_scene, tmp_path, method):
    chosen = getattr(tiny_run, method)(tiny_scene, tmp_path, STEPS)
    chosen.pipeline.datamanager.features = "none"
    model = chosen.pipeline.model
    model.moving_start_step = 0
    train(chosen)
    assert (model.moving_start_step, model.heads_start_step, model.joint_start_step) == (0, 3, 4)
    text = (chosen.get_base_dir() / "config.yml").read_text()
    assert "moving_start_step: 0\n" in text
    again = yaml.load(text, Loader=yaml.Loader)
    again.settle()
    assert again.pipeline.model.moving_start_step == 0


def test_options_of_a_checkpoint_that_would_say_nothing_are_refused(tiny_scene: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--load-step 2 says nothing"):
        config(tiny_scene, tmp_path, load_step=2).save_config()
    both = {"load_dir": tmp_path, "load_checkpoint": tmp_path / "step-000000001.ckpt"}
    with pytest.raises(TrainingError, match="leave one of them out"):
        config(tiny_scene, tmp_path, **both).save_config()
