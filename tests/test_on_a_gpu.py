"""Real things on a small scene, on a GPU: steps, both stages, resumption, evaluation, views, questions, extraction, the
viewer's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from test_feature_encoders import write_encoder, write_scene

from divff_nerfstudio import captured_steps
from divff_nerfstudio.captured_steps import WARM_UP
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.features.segments import ColourSegmenterConfig
from divff_nerfstudio.features.store import FeatureStore
from divff_nerfstudio.models.divff import DivFFModel
from divff_nerfstudio.models.view import EVERYTHING, FEATURES_PCA, PICTURES
from divff_nerfstudio.resumption import random_state, restore_random_state
from divff_nerfstudio.viewer.views import ViewCache, Visibility

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
METHODS = {"divff": tiny_run.config, "divff-paper": tiny_run.published_config, "divff-splat": tiny_run.splat_config}
STEPS = 20


def started(method: str, scene: Path, tmp_path: Path, name: str, steps: int = STEPS, **changes: Any) -> Any:
    """A tiny training on a GPU with features, ready to begin."""
    config = METHODS[method](scene, tmp_path / name, steps)
    config.machine.device_type = "cuda"
    for key, value in changes.items():
        setattr(config, key, value)
    trainer = tiny_run.trainer_of(config)
    torch.manual_seed(0)
    trainer.setup()
    return trainer


@pytest.fixture
def scene(tiny_scene: Path, tmp_path: Path) -> Path:
    tiny_run.write_features(tiny_scene, tmp_path / "encoder")
    return tiny_scene


@pytest.mark.parametrize("method", ["divff", "divff-paper"])
def test_a_step_waits_for_nothing(scene, tmp_path, method):
    pipe = started(method, scene, tmp_path, "run").pipeline
    pipe.model.train()
    assert pipe.datamanager.resident
    schedule = pipe.model.schedule
    for step in sorted({0, schedule.moving_start_step, schedule.heads_start_step, STEPS - 1}):
        for watched in (False, True):  # kernels are compiled and numbers are read at the first time
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error" if watched else "default")
            try:
                _, losses, _ = pipe.get_train_loss_dict(step)
                torch.stack(list(losses.values())).sum().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")


def parts_of(trainer: Any) -> list[int]:
    """The first step of each part of the schedule."""
    schedule = trainer.pipeline.model.schedule
    return sorted({0, schedule.moving_start_step, schedule.heads_start_step, schedule.joint_start_step})


@pytest.mark.parametrize("cuda_graphs", ["on", "off"])
@pytest.mark.parametrize("method", ["divff", "divff-paper"])
def test_an_iteration_with_its_optimizers_waits_for_nothing(scene, tmp_path, capsys, method, cuda_graphs):
    trainer = started(method, scene, tmp_path, "run", cuda_graphs=cuda_graphs)
    trainer.pipeline.train()
    for step in parts_of(trainer):
        for _ in range(WARM_UP + 1):  # behind which the step is captured, and taken both ways once
            trainer.train_iteration(step)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                loss, _, _ = trainer.train_iteration(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert bool(loss.isfinite())
    assert "without CUDA graphs" not in capsys.readouterr().out


@pytest.mark.parametrize("method", ["divff", "divff-paper"])
def test_thirty_captures_in_one_process(scene, tmp_path, monkeypatch, capsys, method):
    """In turns, so that each part begins anew, and its memory with it."""
    trainer, made = started(method, scene, tmp_path, "run", cuda_graphs="on"), []
    usual = captured_steps.CardGraph
    monkeypatch.setattr(captured_steps, "CardGraph", lambda *given: made.append(given) or usual(*given))
    trainer.pipeline.train()
    first, *others = parts_of(trainer)
    for number in range(30):
        for _ in range(WARM_UP + 4):
            loss, _, _ = trainer.train_iteration(others[number // 2 % len(others)] if number % 2 else first)
    assert len(made) == 30 and bool(loss.isfinite())
    assert "without CUDA graphs" not in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_training_goes_through_all_stages_and_answers(scene, tmp_path, method):
    trainer = started(method, scene, tmp_path, "run")
    trainer.train()
    pipe = trainer.pipeline
    scores = pipe.get_average_eval_image_metrics()
    assert all(np.isfinite(value) for value in scores.values()) and "psnr" in scores
    camera, _ = pipe.datamanager.next_eval_image(0)
    pipe.query.ask(text="cu")
    view = pipe.model.get_outputs_for_camera(camera)
    assert all(bool(output.isfinite().all()) for output in view.values()) and "relevancy" in view


def test_views_in_half_precision_are_nearly_those_in_single(scene, tmp_path):
    trainer = started("divff", scene, tmp_path, "run")
    trainer.train()
    model, data = trainer.pipeline.model, trainer.pipeline.datamanager
    camera, _ = data.next_eval_image(0)
    usual = model.render(camera).pictures["rgb"]
    model.config.half_precision = "on"
    error = (model.render(camera).pictures["rgb"] - usual).square().mean()
    assert 0 < error < 1e-4  # 40 dB


@pytest.mark.parametrize("method", ["divff", "divff-paper"])
def test_captured_steps_are_the_steps_that_are_not_captured(scene, tmp_path, method, capsys):
    trained = {}
    for mode in ("on", "off"):
        trainer = started(method, scene, tmp_path, mode, 50, cuda_graphs=mode)
        losses, take = [], trainer.train_iteration

        def listening(step: int, take: Any = take, losses: list[Any] = losses) -> Any:
            found = take(step)
            losses.append(found[0].detach())
            return found

        trainer.train_iteration = listening
        trainer.train()
        trained[mode] = torch.stack(losses), tiny_run.parameters(trainer.pipeline.model)
    assert "without CUDA graphs" not in capsys.readouterr().out  # it was captured
    (losses, parameters), (expected, expected_parameters) = trained["on"], trained["off"]
    assert losses.shape == (50,)
    # Sums of gradients are made in any order on a card, and what differs grows.
    torch.testing.assert_close(losses[:10], expected[:10], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(losses, expected, rtol=5e-2, atol=5e-2)
    for name, value in parameters.items():
        torch.testing.assert_close(value, expected_parameters[name], rtol=5e-2, atol=1e-2, msg=name)


def test_a_capture_that_fails_leaves_the_card_to_the_steps(scene, tmp_path, monkeypatch, capsys):
    usual = DivFFModel._persistence

    def asking(self: DivFFModel, outputs: Any) -> Any:
        loss = usual(self, outputs)
        if torch.cuda.is_current_stream_capturing():
            loss.item()
        return loss

    monkeypatch.setattr(DivFFModel, "_persistence", asking)
    trainer = started("divff", scene, tmp_path, "run", 50)
    trainer.train()
    assert trainer._trained == 49
    assert capsys.readouterr().out.count("without CUDA graphs") == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_draws_what_the_unbroken_one_draws(scene, tmp_path, method):
    unbroken = started(method, scene, tmp_path, "unbroken", steps_per_save=10, save_only_latest_checkpoint=False)
    unbroken.train()
    resumed = started(method, scene, tmp_path, "resumed", load_dir=unbroken.checkpoint_dir, load_step=10)
    resumed.train()
    for name, value in tiny_run.parameters(unbroken.pipeline.model).items():
        found = tiny_run.parameters(resumed.pipeline.model)[name]
        # Sums of gradients are made in any order on a card.
        assert found.shape == value.shape and torch.allclose(found, value, rtol=1e-2, atol=1e-3), name
    data = unbroken.pipeline.datamanager
    state, batches = random_state(data.resident), []
    for _ in range(2):
        restore_random_state(state, data.resident)
        batches.append(data.next_train(STEPS)[1])
    place = "pixels" if method == "divff-splat" else "indices"
    assert torch.equal(batches[0][place], batches[1][place]) and torch.equal(batches[0]["image"], batches[1]["image"])


@pytest.mark.parametrize("method", METHODS)
def test_the_viewer_shows_what_is_rendered_and_asked(scene, tmp_path, method):
    pipe = started(method, scene, tmp_path, "run").pipeline
    model, query = pipe.model, pipe.query
    model.update_to_step(STEPS - 1)
    views = ViewCache(
        model,
        Visibility(),
        state=lambda: None,
        answer=lambda view: query.answer(view.pictures, view.features),
        seen=lambda client, view: None,
        client=lambda: 0,
        wanted=lambda: {*EVERYTHING},
    )
    camera, _ = pipe.datamanager.next_eval_image(0)
    for phrase in ("cu", "pan"):
        query.ask(text=phrase)
        outputs = views.outputs(camera)
        assert {*PICTURES, FEATURES_PCA, "relevancy"} <= outputs.keys()
        for name, picture in outputs.items():
            assert picture.shape[:2] == (16, 24) and bool(picture.isfinite().all()), name
    assert views.rendered == 1 and views.rays_per_second > 0


def test_features_of_a_gpu_are_those_of_a_cpu(tmp_path):
    root, encoder = write_scene(tmp_path / "scene", frames=9, video=30), write_encoder(tmp_path / "encoder")
    stores = {}
    for device in ("cpu", "cuda"):
        config = ExtractConfig(
            root, encoder, ("segments", "clip-tiles", "patches"), output=tmp_path / device, device=device
        )
        config.segments.segmenter, config.segments.colour = "colour", ColourSegmenterConfig()
        stores[device] = {folder.name: FeatureStore.open(folder) for folder in config.main()}
    assert_alike(stores)


def test_so_are_those_of_the_demo_encoder(tmp_path):
    root, stores = write_scene(tmp_path / "scene", frames=9, video=30), {}
    for device in ("cpu", "cuda"):
        folders = ExtractConfig(root, "demo", output=tmp_path / device, device=device).main()
        stores[device] = {folder.name: FeatureStore.open(folder) for folder in folders}
    assert stores["cuda"].keys() == {"image", "video", "regulariser"}
    assert_alike(stores)


def assert_alike(stores: dict[str, dict[str, FeatureStore]]) -> None:
    """Stores of both devices have the same indices, and nearly the same features."""
    for kind, store in stores["cpu"].items():
        other = stores["cuda"][kind]
        for frame in range(9):
            (index, table), (other_index, other_table) = store.frame_features(frame), other.frame_features(frame)
            np.testing.assert_array_equal(index, other_index)
            if kind != "regulariser":  # whose components may turn about
                assert ((table * other_table).sum(-1) > 0.99).all()
