"""The method divff-paper against numbers that the published code has computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.rendering import importance_depths

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def parity(monkeypatch):
    """The script's module."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import parity_divff

    return parity_divff


def files(folder: Path) -> tuple[Path, Path, Path]:
    name = "divff_reference_a"
    return folder / f"{name}.npz", folder / f"{name}.ckpt", folder / f"{name}_autoencoder.pth"


def test_every_array_agrees(parity, parity_dir: Path):
    rows = parity.compare(*files(parity_dir))
    assert len(rows) > 150
    assert [(row.name, row.difference, row.allowed) for row in rows if not row.passed] == []


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        ("embedding_t.W", "train/transient_sigmas"),
        ("nerf_coarse.xyz_encoding_4.0.bias", "train/static_rgbs_coarse"),
        ("nerf_fine.xyz_encoding_6.0.weight", "train/transient_encoding_first4"),
        ("nerf_fine.transient_beta.0.bias", "train/beta"),
        ("person_lerf.clip_net.6.weight", "train/clip"),
    ],
)
def test_weights_off_by_a_ten_thousandth_are_told(parity, parity_dir: Path, tmp_path: Path, weight: str, told: str):
    npz, checkpoint, autoencoder = files(parity_dir)
    with np.load(npz) as file:
        kept = {
            name: file[name] for name in file.files if name.startswith(("in/", "tolerance/", "train/", "test_f32/z"))
        }
    np.savez(tmp_path / "some.npz", **kept)
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"][weight] += 1e-4
    torch.save(content, tmp_path / "other.ckpt")
    rows = parity.compare(tmp_path / "some.npz", tmp_path / "other.ckpt", autoencoder)
    assert told in {row.name for row in rows if not row.passed}


def test_rounding_moves_positions_along_flat_parts_and_errors_are_told(parity):
    edges, weights = np.linspace(0, 1, 63)[None], np.zeros((1, 62))
    weights[0, 30] = 1
    drawn = importance_depths(torch.from_numpy(edges), torch.from_numpy(weights), 64, jitter=False).numpy()
    assert parity.misplaced(drawn, edges, weights).max() < 1e-6
    other = weights * (1 + 1e-7 * np.random.default_rng(0).standard_normal(weights.shape)) + 2e-8
    nudged = importance_depths(torch.from_numpy(edges), torch.from_numpy(other), 64, jitter=False).numpy()
    assert parity.misplaced(nudged, edges, weights).max() < 1e-5
    assert parity.misplaced(drawn + 1e-4, edges, weights).max() > 5e-5
    assert parity.misplaced(drawn, edges, weights + 1e-4).max() > 2e-5


def test_other_weights_unknown_arrays_and_changed_numbers_are_told(parity, parity_dir: Path, tmp_path: Path):
    npz, checkpoint, autoencoder = files(parity_dir)
    kept = ("in/", "nerf_", "tolerance/", "test_f32/z", "test_f32/weights_coarse")
    with np.load(npz) as file:
        data = {name: file[name] for name in file.files if name.startswith(kept)}
    data["nerf_coarse/sigma_only"] = data["nerf_coarse/sigma_only"] + np.float32(1e-3)
    data["nerf_fine/more"] = np.zeros(2)
    np.savez(tmp_path / "changed.npz", **data)
    rows = {row.name: row for row in parity.compare(tmp_path / "changed.npz", checkpoint, autoencoder)}
    assert {name for name, row in rows.items() if not row.passed} == {"nerf_coarse/sigma_only", "nerf_fine/more"}
    assert rows["nerf_fine/more"].allowed is None
    assert rows["nerf_coarse/sigma_only"].difference == pytest.approx(1e-3, 0.1)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    state["nerf_fine.static_rgb.0.bias"] += 0.1
    torch.save(state, tmp_path / "other.ckpt")
    other = parity.compare(tmp_path / "changed.npz", tmp_path / "other.ckpt", autoencoder)
    assert "nerf_fine/output_398" in {row.name for row in other if not row.passed}


def test_what_is_no_file_of_numbers_is_refused(parity, parity_dir: Path, tmp_path: Path):
    _, checkpoint, autoencoder = files(parity_dir)
    with pytest.raises(DivffError, match="cannot be read"):
        parity.compare(checkpoint.with_name("none.npz"), checkpoint, autoencoder)
    np.savez(tmp_path / "empty.npz", **{"train/rgb_fine": np.zeros(3)})
    with pytest.raises(DivffError, match="lacks"):
        parity.compare(tmp_path / "empty.npz", checkpoint, autoencoder)
