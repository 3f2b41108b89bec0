"""Official checkpoints: sizes from shapes, and every fault in one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from divff_nerfstudio.checkpoints import CheckpointError
from divff_nerfstudio.fields.published import FieldSizeError, PublishedField, PublishedFieldConfig
from divff_nerfstudio.fields.published_checkpoint import read_published
from divff_nerfstudio.fields.published_heads import PublishedHeads, PublishedHeadsConfig

FIELD = PublishedFieldConfig(
    position_octaves=3,
    direction_octaves=2,
    time_octaves=4,
    trunk_width=24,
    branch_width=8,
    appearance_dim=5,
    time_dim=6,
)
HEADS = PublishedHeadsConfig(hidden=7)
DIMENSIONS = {"image": 4, "video": 9, "regulariser": 3}
ROWS = 40


def weights(dimensions: dict[str, int] = DIMENSIONS) -> dict[str, torch.Tensor]:
    """A small field's weights, with or without heads, by their published names."""
    torch.manual_seed(0)
    state = PublishedField(FIELD, ROWS, torch.zeros(1)).state_dict()
    if dimensions:
        state |= PublishedHeads(HEADS, FIELD.branch_width, dimensions).state_dict()
    return dict(state)


def write(path: Path, state: dict[str, torch.Tensor], **more: Any) -> Path:
    torch.save({"epoch": 1, "global_step": 17, "state_dict": state, **more}, path)
    return path


@pytest.mark.parametrize(
    "dimensions", [DIMENSIONS, {}, {"image": 4}, {"video": 9, "regulariser": 3}, {"regulariser": 3}]
)
def test_sizes_come_from_shapes(tmp_path: Path, dimensions: dict[str, int]) -> None:
    state = weights(dimensions)
    found = read_published(write(tmp_path / "last.ckpt", state))
    assert found.field_config == FIELD and found.rows == ROWS and found.step == 17
    assert found.dimensions == dimensions
    assert not dimensions or found.heads_config == HEADS
    assert found.field.keys() | found.heads.keys() == state.keys()
    for name, value in (found.field | found.heads).items():
        assert torch.equal(value, state[name])


def test_the_official_checkpoint_is_read(parity_dir: Path) -> None:
    found = read_published(parity_dir / "divff_reference_a.ckpt")
    assert found.field_config == PublishedFieldConfig() and found.heads_config == PublishedHeadsConfig()
    assert found.rows == 1000 and found.step == 12345
    assert found.dimensions == {"image": 128, "video": 512, "regulariser": 64}
    assert len(found.field) + len(found.heads) == 156


def test_a_state_without_a_checkpoint_is_read(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "weights.pth")
    assert read_published(tmp_path / "weights.pth").step is None


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    state = weights()
    del state["embedding_t.W"], state["nerf_fine.person_rgb.0.bias"], state["transient_lerf.clip_net.4.weight"]
    state["nerf_coarse.static_sigma.0.weight"] = torch.zeros(2, 24)
    state["dynamic_lerf.clip_net.0.weight"] = torch.zeros(1)
    state["nerf_fine.dir_encoding.0.weight"] = torch.zeros(8, 17)
    with pytest.raises(CheckpointError) as raised:
        read_published(write(tmp_path / "bad.ckpt", state))
    message = str(raised.value)
    assert "bad.ckpt is no checkpoint of NeuralDiff or DIV-FF" in message
    for part in (
        "unknown: dynamic_lerf.clip_net.0.weight",
        "embedding_t.W, nerf_fine.person_rgb.0.bias",
        "transient_lerf.clip_net.4.weight",
        "nerf_coarse.static_sigma.0.weight (2, 24) instead of (1, 24)",
        "nerf_fine.dir_encoding.0.weight (8, 17)",
    ):
        assert part in message


@pytest.mark.parametrize("content", [{"encoder.0.weight": torch.zeros(3, 3)}, {"embedding_a.weight": torch.zeros(0)}])
def test_other_networks_are_refused(tmp_path: Path, content: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"missing: .*nerf_fine"):
        read_published(write(tmp_path / "other.ckpt", content))


def test_tables_need_two_rows(tmp_path: Path) -> None:
    state = weights({})
    state["embedding_a.weight"] = state["embedding_a.weight"][:1]
    with pytest.raises(CheckpointError, match="no video"):
        read_published(write(tmp_path / "one.ckpt", state))


def test_sizes_beyond_reason_ask_for_no_memory(tmp_path: Path) -> None:
    state = weights()
    state["nerf_fine.xyz_encoding_1.0.weight"] = torch.zeros(20_000, 21)
    with pytest.raises(CheckpointError, match=r"xyz_encoding_1\.0\.weight \(20000, 21\) instead of"):
        read_published(write(tmp_path / "wide.ckpt", state))
    state["nerf_fine.xyz_encoding_1.0.weight"] = torch.zeros(1, 1).expand(2**40, 21)  # a number, said to be terabytes
    with pytest.raises(CheckpointError, match="no dictionary of named tensors"):
        read_published(write(tmp_path / "bomb.ckpt", state))


def test_more_octaves_than_single_precision_holds_are_refused(tmp_path: Path) -> None:
    many = replace(FIELD, position_octaves=30, trunk_width=200)
    state = PublishedField(many, ROWS, torch.zeros(1)).state_dict()
    with pytest.raises(CheckpointError, match=r"many\.ckpt .*position-octaves is 30.*give another"):
        read_published(write(tmp_path / "many.ckpt", dict(state)))


@pytest.mark.parametrize("width", [1, 20])
def test_a_trunk_narrower_than_a_point_is_refused(tmp_path: Path, width: int) -> None:
    wide = PublishedField(replace(FIELD, trunk_width=21), ROWS, torch.zeros(1)).state_dict()
    assert read_published(write(tmp_path / "wide.ckpt", dict(wide))).field_config.trunk_width == 21
    state = dict(wide)
    state["nerf_fine.xyz_encoding_1.0.weight"] = torch.zeros(width, 21)
    with pytest.raises(CheckpointError, match=rf"narrow\.ckpt has a network .* {width} wide .* 21 values"):
        read_published(write(tmp_path / "narrow.ckpt", state))
    with pytest.raises(FieldSizeError, match="trunk-width"):
        PublishedField(replace(FIELD, trunk_width=width), ROWS, torch.zeros(1))
