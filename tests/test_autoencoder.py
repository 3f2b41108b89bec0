"""The scene's autoencoder: exact with published weights, strict about files, and able to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from divff_nerfstudio.checkpoints import CheckpointError
from divff_nerfstudio.features.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    autoencoder_loss,
    evaluate_autoencoder,
    load_autoencoder,
    save_autoencoder,
    train_autoencoder,
)

SMALL = AutoencoderConfig(feature_dim=12, encoder_widths=(8, 4), decoder_widths=(6, 8))
DEEP = AutoencoderConfig(encoder_widths=(256, 128, 64), decoder_widths=(96, 128, 256, 256))


@pytest.fixture(scope="module")
def numbers(parity_dir: Path) -> dict[str, torch.Tensor]:
    with np.load(parity_dir / "divff_reference_a.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("ae")}


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def test_random_weights_give_the_published_numbers(parity_dir: Path, numbers: dict[str, torch.Tensor]) -> None:
    autoencoder = load_autoencoder(parity_dir / "divff_reference_a_autoencoder.pth")
    assert apart(autoencoder.encode(numbers["ae/input_512"]), numbers["ae/encode_128"]) < 3e-6
    assert apart(autoencoder.decode(numbers["ae/encode_128"]), numbers["ae/decode_512"]) < 3e-6
    assert apart(autoencoder(numbers["ae/input_512"]), numbers["ae/forward_512"]) < 3e-6
    assert apart(autoencoder.decode(numbers["ae/decode_in"]), numbers["ae/decode_out"]) < 3e-6


def test_the_authors_weights_give_the_published_numbers(parity_dir: Path, numbers: dict[str, torch.Tensor]) -> None:
    autoencoder = load_autoencoder(parity_dir / "autoencoder_real_P13_03_SAM2_bbox128.pth")
    assert autoencoder.code_dim == 128 and autoencoder.feature_dim == 512 and not autoencoder.training
    assert apart(autoencoder.encode(numbers["ae/input_512"]), numbers["ae_real/encode_128"]) < 3e-6
    assert apart(autoencoder.decode(numbers["ae/decode_in"]), numbers["ae_real/decode_out"]) < 3e-6


@pytest.mark.parametrize(("config", "entries"), [(AutoencoderConfig(), 17), (DEEP, 26), (SMALL, 15)])
def test_widths_come_from_the_file(tmp_path: Path, config: AutoencoderConfig, entries: int) -> None:
    saved = Autoencoder(config).eval()
    save_autoencoder(saved, tmp_path / "best_ckpt.pth")
    loaded = load_autoencoder(tmp_path / "best_ckpt.pth")
    assert len(loaded.state_dict()) == entries
    features = normalize(torch.randn(3, 5, config.feature_dim), dim=-1)
    codes = loaded.encode(features)
    assert codes.shape == (3, 5, config.encoder_widths[-1])
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(3, 5))
    torch.testing.assert_close(loaded(features), saved(features))
    assert [path.name for path in tmp_path.iterdir()] == ["best_ckpt.pth"]


def test_every_fault_of_a_file_is_told(tmp_path: Path) -> None:
    state = Autoencoder(SMALL).state_dict()
    del state["encoder.1.running_mean"], state["decoder.4.bias"]
    state["decoder.2.weight"] = torch.zeros(8, 5)
    state["extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError) as raised:
        load_autoencoder(tmp_path / "bad.pth")
    for part in ("bad.pth", "unknown: extra", "encoder.1.running_mean", "decoder.4.bias", "decoder.2.weight (8, 5)"):
        assert part in str(raised.value)


def test_another_network_is_no_autoencoder(tmp_path: Path) -> None:
    torch.save({"embedding_t.W": torch.zeros(21, 17)}, tmp_path / "field.ckpt")
    with pytest.raises(CheckpointError, match=r"field\.ckpt is no autoencoder.*embedding_t\.W"):
        load_autoencoder(tmp_path / "field.ckpt")


def test_the_cosine_runs_over_channels() -> None:
    target = torch.eye(4)[:2]
    output = torch.eye(4)[[0, 2]]
    assert float(autoencoder_loss(output, target, 0.0)) == pytest.approx(2 / 8)
    assert float(autoencoder_loss(output, target, 1.0)) == pytest.approx(2 / 8 + 0.5)


def test_training_learns_and_repeats_itself(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = random.normal(size=(200, 3)) @ random.normal(size=(3, 12))
    table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float16)
    np.save(tmp_path / "table.npy", table)
    mapped = np.load(tmp_path / "table.npy", mmap_mode="r")
    config = AutoencoderConfig(encoder_widths=(8, 4), decoder_widths=(6, 8), epochs=30, learning_rate=1e-2)
    losses: list[float] = []
    state = torch.get_rng_state()
    trained = train_autoencoder(mapped, config, seed=1, report=lambda _, loss: losses.append(loss))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(losses) == 30 and losses[-1] < 0.3 * losses[0]
    untrained = Autoencoder(SMALL)
    assert evaluate_autoencoder(trained, mapped) < 0.3 * evaluate_autoencoder(untrained, mapped)
    again = train_autoencoder(torch.from_numpy(table), config, seed=1)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, trained.state_dict()[name], rtol=0, atol=0)


def test_the_best_of_the_last_epochs_is_kept() -> None:
    table = normalize(torch.randn(65, 12, generator=torch.Generator().manual_seed(0)), dim=-1)
    wild = AutoencoderConfig(encoder_widths=(8, 4), decoder_widths=(6, 8), epochs=8, learning_rate=0.3)
    kept = {}
    for candidates in (1, 8):
        wild.candidates = candidates
        kept[candidates] = evaluate_autoencoder(train_autoencoder(table, wild), table)
    assert kept[8] <= kept[1]


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_features_are_refused(rows: int) -> None:
    with pytest.raises(CheckpointError, match="two features"):
        train_autoencoder(np.zeros((rows, 12), np.float32), SMALL)


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not finite"):
        train_autoencoder(np.full((4, 12), np.nan, np.float32), AutoencoderConfig(epochs=1))


def test_loading_leaves_the_generator_to_a_training_beside_it(tmp_path):
    """It may be loaded in a thread of the viewer: not even for a moment may the global generator be another."""
    save_autoencoder(
        Autoencoder(AutoencoderConfig(feature_dim=6, encoder_widths=(4,), decoder_widths=())), tmp_path / "a"
    )
    before, drawn = torch.get_rng_state(), []
    get, put = torch.get_rng_state, torch.set_rng_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_rng_state", lambda: (drawn.append("asked"), get())[1])
        patch.setattr(torch, "set_rng_state", lambda state: (drawn.append("set"), put(state))[1])
        loaded = load_autoencoder(tmp_path / "a")
    assert drawn == [] and torch.equal(torch.get_rng_state(), before)
    assert all(value.device.type == "cpu" for value in loaded.state_dict().values())


@pytest.mark.parametrize("damage", ["cut", "nan", "other"])
def test_a_damaged_state_of_an_interrupted_training_is_named(tmp_path, damage):
    state, table = tmp_path / "training.pth", torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    sizes = AutoencoderConfig(encoder_widths=(4,), decoder_widths=(), epochs=2)
    train_autoencoder(table, sizes, state=state)
    if damage == "cut":
        state.write_bytes(state.read_bytes()[:300])
    elif damage == "nan":
        content = torch.load(state, weights_only=True)
        next(iter(content["autoencoder"].values())).fill_(float("nan"))
        torch.save(content, state)
    else:
        torch.save({"epoch": 1}, state)
    with pytest.raises(CheckpointError, match=r"training\.pth.*remove it"):
        train_autoencoder(table, sizes, state=state)


def test_training_stops_at_the_first_epoch_that_is_not_finite(tmp_path):
    table, epochs = torch.full((8, 6), float("nan")), []
    sizes = AutoencoderConfig(encoder_widths=(4,), decoder_widths=(), epochs=5)
    with pytest.raises(CheckpointError, match="not finite in epoch 1"):
        train_autoencoder(table, sizes, report=lambda epoch, _: epochs.append(epoch), state=tmp_path / "s")
    assert epochs == [] and not (tmp_path / "s").exists()
