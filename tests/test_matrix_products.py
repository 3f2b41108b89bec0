"""Training steps on a card take matrix products in TF32; what they are taken on, and views, are in single precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch

from divff_nerfstudio import trainer as trainer_module
from divff_nerfstudio.pipeline import DivFFPipeline

METHODS = {"divff": tiny_run.config, "divff-paper": tiny_run.published_config, "divff-splat": tiny_run.splat_config}


def trained(scene: Path, output: Path, monkeypatch: pytest.MonkeyPatch, method: str, **changes: Any) -> dict[str, set]:
    """The precisions of products in a training's steps, in what they are drawn from, and in evaluations."""
    config = METHODS[method](scene, output, 4)
    config.steps_per_eval_image = 2
    for key, value in changes.items():
        setattr(config, key, value)
    trainer: Any = tiny_run.trainer_of(config)
    trainer.setup()
    seen: dict[str, set] = {}

    def listening(place: Any, name: str) -> None:
        usual = getattr(place, name)

        def heard(*args: Any, **options: Any) -> Any:
            seen.setdefault(name, set()).add(torch.get_float32_matmul_precision())
            return usual(*args, **options)

        monkeypatch.setattr(place, name, heard)

    listening(trainer.pipeline.model, "training_step")
    listening(trainer.pipeline.datamanager, "next_train")
    listening(trainer.pipeline, "get_eval_image_metrics_and_images")
    trainer.train()
    return seen


@pytest.fixture
def on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "is_card", lambda device: True)


@pytest.mark.parametrize("method", METHODS)
def test_steps_on_a_card_are_in_tf32_and_nothing_else(tiny_scene, tmp_path, monkeypatch, on_a_card, method):
    seen = trained(tiny_scene, tmp_path, monkeypatch, method)
    assert seen["training_step"] == {"high"}
    assert seen["next_train"] == seen["get_eval_image_metrics_and_images"] == {"highest"}
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("tf32", [True, False])
def test_steps_elsewhere_and_without_the_option_are_not(tiny_scene, tmp_path, monkeypatch, tf32):
    monkeypatch.setattr(trainer_module, "is_card", lambda device: not tf32)
    seen = trained(tiny_scene, tmp_path, monkeypatch, "divff", tf32=tf32)
    assert set().union(*seen.values()) == {"highest"}


@pytest.mark.parametrize("before", ["highest", "medium"])
def test_a_training_that_fails_leaves_products_as_they_were(tiny_scene, tmp_path, monkeypatch, on_a_card, before):
    def failing(pipeline: DivFFPipeline, step: int) -> Any:
        assert torch.get_float32_matmul_precision() == "high"
        raise ValueError("the step fails")

    monkeypatch.setattr(DivFFPipeline, "get_train_loss_dict", failing)
    torch.set_float32_matmul_precision(before)
    try:
        with pytest.raises(ValueError, match="the step fails"):
            trained(tiny_scene, tmp_path, monkeypatch, "divff")
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision("highest")
