"""The method divff-paper against its own frozen numbers, of a run that agreed with the published code's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

FROZEN = Path(__file__).parent / "data" / "parity_frozen.npz"


@pytest.fixture
def scripts(monkeypatch):
    """The modules that compare, and that draw the weights."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")
    import parity_divff
    import parity_frozen

    return parity_divff, parity_frozen


@pytest.fixture
def weights(scripts, tmp_path: Path) -> tuple[Path, Path]:
    """The small network, and its autoencoder."""
    paths = tmp_path / "small.ckpt", tmp_path / "small.pth"
    scripts[1].write_weights(*paths)
    return paths


def test_every_frozen_array_agrees(scripts, weights):
    rows = scripts[0].compare(FROZEN, *weights)
    assert len(rows) > 130
    assert [(row.name, row.difference, row.allowed) for row in rows if not row.passed] == []


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        ("embedding_t.W", "lre/L"),
        ("nerf_coarse.xyz_encoding_4.0.bias", "train/static_rgbs_coarse"),
        ("nerf_fine.xyz_encoding_6.0.weight", "train/transient_encoding_first4"),
        ("nerf_fine.transient_beta.0.bias", "train/beta"),
        ("person_lerf.clip_net.6.weight", "train/clip"),
    ],
)
def test_weights_off_by_a_ten_thousandth_are_told(scripts, weights, weight: str, told: str):
    content = torch.load(weights[0], weights_only=True)
    content["state_dict"][weight] += 1e-4
    torch.save(content, weights[0])
    assert told in {row.name for row in scripts[0].compare(FROZEN, *weights) if not row.passed}


def test_the_frozen_inputs_are_those_that_are_drawn(scripts, weights):
    with np.load(FROZEN) as file:
        stored = {name: file[name] for name in file.files}
    anew = scripts[1].frozen(*weights)
    assert stored.keys() == anew.keys()
    for name, values in stored.items():
        if name.startswith(("in/", "loss_in/")) and name != "in/rays":
            np.testing.assert_allclose(values, anew[name], rtol=1e-6, atol=1e-6)
