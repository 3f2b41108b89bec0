"""Training steps, and views of Gaussians, ask nothing of the device that the host would have to wait for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from hostless import DEVICE, HostWatch
from nerfstudio.engine.optimizers import Optimizers
from torch import Tensor

from divff_nerfstudio.captured_steps import tensors_of
from divff_nerfstudio.evidence.labels import Labels
from divff_nerfstudio.fields.space import SceneSpace
from divff_nerfstudio.models.splat import density_control, drawing, model, splats
from divff_nerfstudio.models.splat.model import SplatModel
from divff_nerfstudio.models.view import EVERYTHING

METHODS = {"divff": tiny_run.config, "divff-paper": tiny_run.published_config, "divff-splat": tiny_run.splat_config}


def pipeline(method: str, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: str = "on") -> Any:
    """A tiny pipeline with features on a device whose tensors have no values, and its optimizers."""
    tiny_run.write_features(scene, tmp_path / "encoder")
    config = METHODS[method](scene, tmp_path, 40)
    config.pipeline.datamanager.resident = resident
    config.settle()
    # What is read from the device once, and then known.
    monkeypatch.setattr(SceneSpace, "known_length", lambda self: 4.0)
    monkeypatch.setattr(SplatModel, "_near", lambda self, view: 0.1)
    pipe = config.pipeline.setup(device=DEVICE, test_mode="val")
    data = pipe.datamanager
    assert data.resident == data._features.resident == (resident == "on")
    data._colours.frame(0)  # what is put there at the first step
    pipe.optimizers = Optimizers(config.optimizers, pipe.get_param_groups())
    return pipe


def rasterised(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, *_: Any, **o: Any
) -> tuple[Tensor, Tensor, dict]:
    """Stands for gsplat's kernels: pictures that follow from all that is given."""
    size = o["height"], o["width"]
    means2d = (means @ viewmats[0, :3, :3].T)[None, :, :2]
    weight = (means2d.sum() + quats.sum() + scales.sum() + opacities.sum()).expand(1, *size, 1)
    facts = {"means2d": means2d, "radii": torch.ones_like(means2d[..., 0]).int(), "width": size[1], "height": size[0]}
    return weight * colors.sum(0), weight, facts


def followed(pipe: Any, step: int, optimizers: Optimizers | None = None) -> list[str]:
    """What a step puts on the device, from the batch to the gradients, or to the optimizers' steps."""
    with HostWatch() as watch:
        _, losses, metrics = pipe.get_train_loss_dict(step)
        torch.stack(list(losses.values())).sum().backward()
        if optimizers is not None:
            optimizers.optimizer_scaler_step_all(torch.amp.GradScaler(enabled=False))  # pyright: ignore
        torch.stack([loss.detach().isfinite().all() for loss in losses.values()])
    assert all(value.device.type == DEVICE for value in (*losses.values(), *metrics.values()))
    return watch.found


def test_batches_of_which_the_host_has_features_are_drawn_without_the_device(tiny_scene, tmp_path, monkeypatch):
    pipe = pipeline("divff", tiny_scene, tmp_path, monkeypatch, resident="frames")
    data = pipe.datamanager
    shape = (len(data.train_dataset), data.train_dataset.scene.height, data.train_dataset.scene.width, 8)
    data.__dict__["_labels"] = Labels(np.full(shape, 99, np.uint8), (1.0, 4.0))
    data._codes.frame(0), data._times  # what is put there at the first step
    with HostWatch() as watch:
        rays, batch = pipe.drawn(39)
    assert watch.found == [] and rays.origins.device.type == DEVICE
    assert {each.device.type for each in tensors_of(batch)} - {"cpu"} == {DEVICE} and "image" in batch["features"]
    assert batch["indices"].device.type == "cpu" and batch["evidence"].device.type == DEVICE


@pytest.mark.parametrize("method", ["divff", "divff-paper"])
def test_a_step_waits_for_nothing_in_any_part_of_the_schedule(tiny_scene, tmp_path, monkeypatch, method):
    pipe = pipeline(method, tiny_scene, tmp_path, monkeypatch)
    schedule = pipe.model.train().schedule
    for step in sorted({0, schedule.moving_start_step, schedule.heads_start_step, schedule.joint_start_step, 39}):
        pipe.model.zero_grad()
        assert followed(pipe, step, pipe.optimizers) == [], step
    assert any(parameter.grad is not None for parameter in pipe.model.semantic.parameters())


def gaussians(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pipeline of Gaussians in all layers, where their device is taken for a card."""
    pipe = pipeline("divff-splat", scene, tmp_path, monkeypatch)
    splat = pipe.model
    for layer in ("dynamic", "actor"):
        splat.gaussian_layer(layer).make_room(7)
        for row in splat.gaussian_layer(layer).rows.values():
            row.data = row.data.to(DEVICE)
    monkeypatch.setattr(drawing, "rasterization", rasterised)
    for module in (splats, model):
        monkeypatch.setattr(module, "is_card", lambda device: True)
    return pipe


def test_a_step_of_gaussians_waits_for_nothing_but_their_kernels(tiny_scene, tmp_path, monkeypatch):
    pipe = gaussians(tiny_scene, tmp_path, monkeypatch)
    splat = pipe.model.train()
    schedule = splat.schedule
    for step in sorted({0, schedule.moving_start_step, schedule.heads_start_step, schedule.joint_start_step, 39}):
        splat.zero_grad()
        assert followed(pipe, step) == [], step
        layers = {name: (splat.gaussian_layer(name), seen) for name, seen in splat.observed.items()}
        with HostWatch() as watch:  # between two refinements what is seen is only gathered
            for layer, observation in layers.values():
                density_control.refine(layer, {}, observation, 1, 99, splat.config.densification)
        assert watch.found == []


def test_a_view_of_gaussians_waits_for_nothing_but_their_kernels(tiny_scene, tmp_path, monkeypatch):
    """Of a camera that the host knows: it is never read back from the device."""
    pipe = gaussians(tiny_scene, tmp_path, monkeypatch)
    splat, camera = pipe.model, pipe.datamanager.train_dataset.cameras[:1]
    splat.update_to_step(39)
    for _ in range(2):  # the basis of colours for features is sent once
        with HostWatch() as watch:
            view = splat.render(camera)
            features = dict(view.features)
    assert watch.found == []
    assert (*view.pictures, "features") == EVERYTHING and {*features} == {"image", "video", "regulariser"}
    assert all(each.device.type == DEVICE for each in (*view.pictures.values(), *features.values()))


def test_the_watch_sees_what_would_be_waited_for():
    values = torch.rand(4, 3, device=DEVICE)
    with HostWatch() as watch:
        torch.linspace(0, 1, 4).to(DEVICE)
        values * 2.0 + torch.zeros(())
    assert watch.found == ["aten::_to_copy"]
    for waits in (lambda: values.sum().item(), values.nonzero, lambda: values[values > 0], values.cpu):
        with pytest.raises(RuntimeError, match=r"[Mm]eta"):
            waits()
