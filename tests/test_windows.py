"""Long videos in windows: how they are cut, what each window has of its own, and runs of them through the commands."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tiny_run
import torch
from conftest import write_tiny_scene
from hypothesis import given
from hypothesis import strategies as st
from nerfstudio.cameras.rays import RayBundle

from divff_nerfstudio import open_run
from divff_nerfstudio.checkpoints import CheckpointError
from divff_nerfstudio.cli.evaluate import EvaluateConfig
from divff_nerfstudio.cli.export import ExportConfig
from divff_nerfstudio.cli.query import QueryCommandConfig
from divff_nerfstudio.cli.things import DiaryConfig, ObjectsConfig
from divff_nerfstudio.cli.video import VideoConfig
from divff_nerfstudio.data.scene import SceneError, SceneFolder, load_scene
from divff_nerfstudio.data.windows import MIN_FRAMES, Windows, cut_windows
from divff_nerfstudio.fields.layered import LayeredField
from divff_nerfstudio.fields.layers import LAYERS
from divff_nerfstudio.fields.windowed import WindowedField
from divff_nerfstudio.models.divff import DivFFModel
from divff_nerfstudio.models.view import PICTURES
from divff_nerfstudio.trainer import DivFFTrainer, TrainingError

FRAMES, WINDOWS, STEPS = 48, 3, 12


@pytest.fixture(scope="module")
def long_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny scene of more frames than others: 24 to train on, 12 to test."""
    return write_tiny_scene(tmp_path_factory.mktemp("long") / "scene", FRAMES, extras=False)


def cut(root: Path, count: int, overlap: float) -> tuple[SceneFolder, Windows]:
    scene = load_scene(root)
    return scene, cut_windows(scene, scene.times(), count, overlap)


def trainer(scene: Path, output: Path, steps: int = STEPS, overlap: float = 0.2, resume: bool = False) -> DivFFTrainer:
    config = tiny_run.config(scene, output, steps)
    config.pipeline.datamanager.windows, config.pipeline.datamanager.window_overlap = WINDOWS, overlap
    if resume:
        config.load_dir = config.get_checkpoint_dir()
    config.save_config()
    torch.manual_seed(0)
    found = tiny_run.trainer_of(config)
    found.setup()
    return found


def windowed(found: DivFFTrainer) -> tuple[DivFFModel, WindowedField]:
    model = found.pipeline.model
    assert isinstance(model, DivFFModel) and isinstance(model.field, WindowedField)
    return model, model.field


@given(frames=st.integers(50, 400), count=st.integers(2, 8), overlap=st.floats(0, 0.5))
def test_no_frame_falls_out_of_all_windows(frames: int, count: int, overlap: float) -> None:
    scene = SimpleNamespace(splits={"train": np.arange(frames)}, root=Path())
    windows = cut_windows(cast(Any, scene), np.linspace(0, 1, frames), count, overlap)
    assert {i for window in windows.frames for i in window} == set(range(frames))
    sizes = [len(window) for window in windows.frames]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.34, 0.5])
def test_windows_cover_the_video_and_overlap(long_scene: Path, count: int, overlap: float) -> None:
    scene, windows = cut(long_scene, count, overlap)
    train = scene.splits["train"]
    assert sorted({i for frames in windows.frames for i in frames}) == list(range(len(train)))
    sizes = [len(frames) for frames in windows.frames]
    assert max(sizes) - min(sizes) <= 1
    for one, other in zip(windows.frames, windows.frames[1:], strict=False):
        assert abs((one.stop - other.start) - overlap * max(sizes)) < 2
    assert (windows.spans[0][0], windows.spans[-1][1]) == (0.0, 1.0)
    # Every moment is told of by a window that holds it, or lies in no window: between two that share no frame.
    times = scene.times()
    numbers = windows.at(times)
    assert (np.diff(numbers) >= 0).all() and set(numbers) == set(range(count))
    for time, number in zip(times, numbers, strict=True):
        first, last = windows.spans[number]
        assert first <= time <= last or not any(a <= time <= b for a, b in windows.spans)


def test_the_middle_of_an_overlap_parts_two_windows() -> None:
    windows = Windows((range(6), range(4, 10)), ((0.0, 0.6), (0.4, 1.0)))
    assert windows.at(np.array([0.0, 0.45, 0.499, 0.501, 0.59, 1.0])).tolist() == [0, 0, 0, 1, 1, 1]
    assert [windows.of_step(step) for step in range(4)] == [0, 1, 0, 1]


def test_windows_that_are_too_short_are_refused(long_scene: Path, tmp_path: Path) -> None:
    cut(long_scene, 24 // MIN_FRAMES, 0.0)
    with pytest.raises(SceneError, match=f"has 24 training frames, .* needs {MIN_FRAMES}: lower .*windows, or leave"):
        cut(long_scene, 24 // MIN_FRAMES + 1, 0.0)
    config = tiny_run.config(long_scene, tmp_path)
    config.pipeline.datamanager.windows = 900
    with pytest.raises(SceneError, match="one of 900 windows would get"):
        config.pipeline.setup(device="cpu")


@pytest.mark.parametrize("method", [tiny_run.published_config, tiny_run.splat_config])
def test_other_methods_refuse_windows(long_scene: Path, tmp_path: Path, method) -> None:
    config = method(long_scene, tmp_path)
    config.pipeline.datamanager.windows = 2
    with pytest.raises(TrainingError, match=r"leave --pipeline.datamanager.windows out, or train the method divff"):
        config.pipeline.setup(device="cpu")


def test_settles_steps_by_windows(long_scene: Path, tmp_path: Path) -> None:
    config = tiny_run.config(long_scene, tmp_path)
    config.max_num_iterations, config.pipeline.datamanager.windows = None, 4
    config.settle()
    assert config.max_num_iterations == 4 * 5000
    assert config.pipeline.model.staged()[:3] == (600, 15000, 18400)


def test_batches_are_of_the_steps_window(long_scene: Path, tmp_path: Path) -> None:
    config = tiny_run.config(long_scene, tmp_path).pipeline.datamanager
    config.windows, config.train_num_rays_per_batch = WINDOWS, 400
    data = config.setup(device="cpu", test_mode="val")
    for step in range(2 * WINDOWS):
        frames = data.windows.frames[step % WINDOWS]
        rays, batch = data.next_train(step)
        assert set(batch["indices"][:, 0].tolist()) == set(frames)
        first, last = data.windows.spans[step % WINDOWS]
        assert first <= float(rays.times.min()) and float(rays.times.max()) <= last + 1e-6


def test_a_step_trains_its_window_and_the_room(long_scene: Path, tmp_path: Path) -> None:
    found = trainer(long_scene, tmp_path)
    model, field = windowed(found)
    found.pipeline.train()
    for step in (6, 7, 8):  # all layers are trained
        model.zero_grad()
        _, losses, _ = found.pipeline.get_train_loss_dict(step)
        torch.stack(list(losses.values())).sum().backward()
        own = f"windows.{step % WINDOWS}."
        for name, parameter in field.named_parameters():
            moving = name.split(".")[2] in ("dynamic", "actor", "actor_shadow") or ".proposal.camera" in name
            touched = parameter.grad is not None
            assert touched == (name.startswith(own) if moving else True), name
    groups = field.param_groups()
    listed = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(listed) == sorted(id(parameter) for parameter in field.parameters())


def test_rays_are_rendered_by_the_windows_of_their_times(long_scene: Path, tmp_path: Path) -> None:
    found = trainer(long_scene, tmp_path)
    model, field = windowed(found)
    model.eval()
    model.update_to_step(STEPS)
    rays, _ = found.pipeline.datamanager.next_train(0)

    def rendered(chosen: RayBundle) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return model.along(chosen, LAYERS, set(PICTURES))

    rays.times = torch.linspace(0, 1, len(rays))[:, None]
    mixed = rendered(rays)
    assert model.windows is not None
    numbers = model.windows.at(rays.times[:, 0].numpy())
    for number in range(WINDOWS):
        chosen = torch.from_numpy(numbers == number)
        alone = rendered(rays[chosen])
        assert field.window == number
        for name in PICTURES:
            torch.testing.assert_close(mixed[name][chosen], alone[name])
    # The same rays at another window's times: the same room, other moving layers.
    early, late = (torch.full_like(rays.times, time) for time in (0.01, 0.99))
    first, last = (rendered(rays[...]) for rays.times in (early, late))
    assert not torch.allclose(first["rgb_actor"], last["rgb_actor"])
    grids = [field.get_submodule(f"windows.{window}.static.grid") for window in (0, WINDOWS - 1)]
    assert grids[0] is grids[1]
    # What has been moved is told by all earlier moments, each as its own window tells of it.
    moments, places = torch.tensor([[0.01, 0.5, 0.99]]), torch.randn(1, 3)
    field.turn_to(1)
    density, colours = field.dynamic_at(places, moments)
    for column in range(WINDOWS):
        window = field.windows[column]
        assert isinstance(window, LayeredField)
        start, end = model.windows.spans[column]
        its_density, its_colours = window.dynamic_at(places, (moments[:, column, None] - start) / (end - start))
        torch.testing.assert_close(density[:, column, None], its_density)
        torch.testing.assert_close(colours[:, column, None], its_colours)


def test_a_resumed_training_goes_on_as_the_unbroken_one(
    long_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer(long_scene, tmp_path / "whole")
    whole.train()
    part = trainer(long_scene, tmp_path / "part")
    monkeypatch.setattr(part, "train_iteration", _ending_after(part, 7))
    with pytest.raises(SystemExit):
        part.train()
    again = trainer(long_scene, tmp_path / "part", resume=True)
    again.train()
    expected = tiny_run.parameters(whole.pipeline.model)
    for name, value in tiny_run.parameters(again.pipeline.model).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="other windows"):
        trainer(long_scene, tmp_path / "part", STEPS + 1, overlap=0.4, resume=True)


def _ending_after(found: DivFFTrainer, step: int):
    """A trainer's step that is interrupted behind one of them."""
    usual = found.train_iteration

    def iteration(at: int):
        if at == step:
            found._signals.append(15)
        return usual(at)

    return iteration


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config.yml of a finished run in windows, of a scene whose frames show three things side by side."""
    folder = tmp_path_factory.mktemp("windowed")
    scene = write_tiny_scene(folder / "scene", FRAMES, extras=False)

    def side_by_side(_: int, height: int, width: int) -> np.ndarray:
        return np.broadcast_to(np.arange(width) * 3 // width, (height, width))

    tiny_run.write_features(scene, folder / "encoder", ("cu", "ta", "bo"), side_by_side)
    found = trainer(scene, folder / "out")
    found.train()
    return found.config.get_base_dir() / "config.yml"


def test_a_run_answers_at_both_ends_of_the_video(run: Path, tmp_path: Path) -> None:
    first, last = (
        QueryCommandConfig(run, text=("cu",), output=tmp_path / str(time), time=time).main() for time in (0.0, 1.0)
    )
    assert (first["time"], last["time"]) == (0.0, 1.0)
    scores = EvaluateConfig(run, tasks=("masks",), baselines=()).main()
    assert scores is not None and len(scores.frames) == 12
    facts = json.loads((run.parent / "evaluation" / "scores.json").read_text())
    assert "Windows" in json.dumps(facts)
    scene = open_run(run)
    model = scene.trained.model
    assert isinstance(model, DivFFModel)
    field = model.field
    for moment, window in ((0.0, 0), (0.5, 1), (1.0, 2), (scene.frame_ids[0], 0), (scene.frame_ids[-1], 2)):
        picture = scene.render(moment)
        assert field.window == window and np.isfinite(picture.rgb).all()


def test_things_are_found_across_the_windows(run: Path, tmp_path: Path) -> None:
    things = ObjectsConfig(run, output=tmp_path).main()["things"]
    assert len(things) > 1
    assert max(thing["frames"] for thing in things) == FRAMES  # not one for each window
    events = DiaryConfig(run, output=tmp_path).main()["events"]
    assert all(event["start"]["time"] < event["end"]["time"] for event in events)
    answer = QueryCommandConfig(run, text=("cu",), output=tmp_path, when=True).main()
    assert [told["query"] for told in answer["answers"]] == ["cu"]


def test_videos_and_points_take_a_run_in_windows(run: Path, tmp_path: Path) -> None:
    film = VideoConfig(run, output=tmp_path / "film.mp4", queries=("cu",), hide=("actor",), frames=4, cell_height=16)
    assert film.main().stat().st_size > 1000
    for time in (0.0, 1.0):
        points = ExportConfig(run, output=tmp_path / f"{time}.ply", queries=("cu",), time=time).main()
        assert points.stat().st_size > 1000
