"""How hints of what moves and what is hand are trained on, by both methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
from conftest import TINY_HEIGHT, TINY_WIDTH
from test_datamanager import manager, write_features
from test_hints import extract

from divff_nerfstudio import datamanager
from divff_nerfstudio.data.scene import SceneError
from divff_nerfstudio.features.hints.planes import NO, UNKNOWN, YES
from divff_nerfstudio.frame_datamanager import FrameDataManager, FrameDataManagerConfig
from divff_nerfstudio.models.separation import SeparationConfig, fusion_losses, layer_losses, room_loss


def test_hints_fuse_into_the_layer_that_they_name():
    yes, no, unknown = float(YES), float(NO), float(UNKNOWN)
    dynamic, actor = 0.2, 0.3
    own, either, theirs = -math.log(dynamic), -math.log(dynamic + actor), -math.log(actor)
    not_own, not_theirs = -math.log(1 - dynamic), -math.log(1 - actor)
    for moves, hand, belongs, against in (
        (unknown, unknown, 0, 0),
        (unknown, yes, theirs, not_own),
        (yes, yes, theirs, not_own),
        (no, yes, theirs, not_own),
        (yes, no, own, not_theirs),
        (yes, unknown, either, 0),
        (unknown, no, 0, not_theirs),
        (no, no, 0, not_theirs),
        (no, unknown, 0, not_theirs),
    ):
        hints = torch.tensor([[moves, hand], [unknown, unknown]])
        found = fusion_losses(torch.tensor([dynamic, 0.5]), torch.tensor([actor, 0.5]), hints)
        assert [float(each) for each in found] == pytest.approx([belongs / 2, against / 2], rel=1e-5)


def test_hints_are_weighed_and_keep_the_room_from_what_moves():
    config = SeparationConfig(hint_weight=2.0, hint_against_weight=3.0)
    rgb, target = torch.zeros(4, 3), torch.ones(4, 3)
    hints = torch.tensor([[1.0, 0], [0, 1], [-1, -1], [0, 0]])
    masks = {"dynamic": torch.full((4,), 0.2), "actor": torch.full((4,), 0.3)}
    for evidence in (None, torch.full((4, 2), 0.25)):
        plain = layer_losses(config, 1.0, masks, rgb, None, target, evidence)  # pyright: ignore
        hinted = layer_losses(config, 1.0, masks, rgb, None, target, evidence, hints=hints)  # pyright: ignore
        belongs, against = fusion_losses(masks["dynamic"], masks["actor"], hints)
        assert "hints" not in plain and float(hinted["hints"]) == pytest.approx(float(2 * belongs + 3 * against))
        assert {key: plain[key] for key in ("mask",)} == {key: hinted[key] for key in ("mask",)}
        assert float(hinted["static"]) == pytest.approx(float(plain["static"]) / 2)
        before, after = (room_loss(config, rgb, target, evidence, each) for each in (None, hints))
        assert float(after) == pytest.approx(float(before) / 2)


def test_batches_carry_hints_of_their_pixels(
    tiny_scene: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    store = extract(tiny_scene, moving="test_hints:Halves", hands="none")
    write_features(tiny_scene)
    drawn = []
    monkeypatch.setattr(datamanager, "free_bytes", lambda device: 10 * 2**30)  # as on a card, which "auto" looks at
    for resident in ("off", "on", "auto"):
        data = manager(tiny_scene, resident=resident, train_num_rays_per_batch=200)
        assert set(data.feature_stores) == {"image"}
        torch.manual_seed(0)
        assert "hints" not in data.next_train(0)[1]
        capsys.readouterr()
        data = manager(tiny_scene, resident=resident, train_num_rays_per_batch=200)
        data.use_hints()
        said = capsys.readouterr().out
        train = data.train_dataset.scene.splits["train"]
        half = 50 * np.mean(train % 2 == 1)
        assert f"Hints of {len(train)} training frames are used (moving: halves; hands: none)" in said
        assert f"{half:.1f} % move" in said and "0.0 % are hand" in said
        torch.manual_seed(0)
        _, batch = data.next_train(0)
        camera, row, column = batch["indices"].unbind(-1)
        assert torch.equal(batch["hints"], store.lookup(train[camera.numpy()], row, column)[0])
        drawn.append(batch["hints"])
    assert all(torch.equal(each, drawn[0]) for each in drawn)


def test_whole_frames_carry_hints(tiny_scene: Path):
    store = extract(tiny_scene, moving="test_hints:Halves")
    config = FrameDataManagerConfig(data=tiny_scene, features="none")
    data = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    assert isinstance(data, FrameDataManager) and "hints" not in data.next_train(0)[1]
    data = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    data.use_hints()
    _, batch = data.next_train(0)
    row, column = (torch.from_numpy(each.ravel()) for each in np.mgrid[:TINY_HEIGHT, :TINY_WIDTH])
    assert torch.equal(batch["hints"], store.lookup(torch.full_like(row, batch["frame_index"]), row, column)[0])


def test_hints_that_are_missing_or_of_other_frames_stop_the_start(tiny_scene: Path, edit_meta):
    data = manager(tiny_scene, features="none")
    with pytest.raises(SceneError, match=r"lacks hints: run `divff extract .*--sources hints`.*hints off"):
        data.use_hints()
    manager(tiny_scene, "test", features="none").use_hints()  # an evaluation needs none
    extract(tiny_scene, moving="test_hints:Halves")
    edit_meta(lambda meta: (meta["ids_all"].pop(1), meta["ids_train"].pop(0)))
    with pytest.raises(SceneError, match=r"other frames.*--sources hints --overwrite"):
        manager(tiny_scene, features="none").use_hints()


@pytest.mark.parametrize("configured", [tiny_run.config, tiny_run.splat_config])
def test_both_methods_train_on_the_hints_that_there_are(tiny_scene: Path, tmp_path: Path, configured: Callable):
    def losses(name: str, **options: object) -> tuple[str, dict[str, torch.Tensor]]:
        config = configured(tiny_scene, tmp_path / name)
        for key, value in {"hints": "auto", **options}.items():
            setattr(config.pipeline.model, key, value)
        torch.manual_seed(0)
        trainer = tiny_run.trainer_of(config)
        trainer.setup()
        torch.manual_seed(0)
        _, found, _ = trainer.pipeline.get_train_loss_dict(config.pipeline.model.staged().moving_start_step)
        return config.pipeline.model.hints, found

    hints, found = losses("without")
    assert hints == "off" and "hints" not in found
    extract(tiny_scene, moving="test_hints:Halves")
    hints, found = losses("with")
    assert hints == "on" and found["hints"] > 0
    hints, other = losses("heavy", hint_weight=2.2, hint_against_weight=2.0)
    assert float(other["hints"]) == pytest.approx(2 * float(found["hints"]), rel=1e-4)
    hints, found = losses("off", hints="off")
    assert hints == "off" and "hints" not in found


def test_hints_are_no_features(tiny_scene: Path):
    extract(tiny_scene, moving="test_hints:Halves")
    data = manager(tiny_scene)
    assert data.feature_stores == {} and data.config.survey()[1] is False and data.config.has_hints()
    with pytest.raises(SceneError, match="lacks image and video and regulariser features"):
        manager(tiny_scene, features="all")
