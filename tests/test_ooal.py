"""OOAL: numbers of the published code, the published layout, names that it was not trained on, and its baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_scene
import torch

from divff_nerfstudio.checkpoints import CheckpointError
from divff_nerfstudio.evaluation.baselines.models import BaselineModels
from divff_nerfstudio.evaluation.baselines.ooal import baseline as ooal_baseline
from divff_nerfstudio.evaluation.baselines.ooal.network import Ooal, unused_shapes
from divff_nerfstudio.evaluation.baselines.ooal.shape import OoalShape, infer_shape
from divff_nerfstudio.evaluation.baselines.ooal.text import TokenRows, prompt_ids
from divff_nerfstudio.evaluation.baselines.ooal.weights import SEEN, UNSEEN, find_weights, load_ooal, trained_names
from divff_nerfstudio.evaluation.run import Wanted, evaluate
from divff_nerfstudio.features.pretrained import EncoderError

TINY = OoalShape(
    positions=26, width=64, hidden=64, depth=3, heads=12, embedding=32, embedder_hidden=32, text_width=64,
    text_hidden=64, text_layers=1, decoder_hidden=32,
)  # fmt: skip
HEADS = {"heads": 4, "text_heads": 4}
VOCABULARY = 49408


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return torch.randn(VOCABULARY, TINY.text_width, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def state(table) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in Ooal(OoalShape(**{**vars(TINY), "heads": 4})).state_dict().items()
        }
    tensors = {name: 0.2 * torch.randn(shape) for name, shape in (shapes | unused_shapes(TINY)).items()}
    tokens = table[prompt_ids(SEEN, 77, 8)]
    return tensors | {"prompt_learner.token_prefix": tokens[:, :1], "prompt_learner.token_suffix": tokens[:, 9:]}


@pytest.fixture
def weights(state, tmp_path: Path) -> Path:
    path = tmp_path / "seen_best.pth"
    torch.save({"iter": 7, "model_state_dict": state}, path)
    return path


@pytest.fixture
def numbers(parity_dir: Path, monkeypatch) -> Path:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")
    path = parity_dir / "ooal_tiny.npz"
    if not path.is_file():
        pytest.skip("there are no numbers of OOAL")
    return path


def test_every_array_agrees(numbers):
    from parity_ooal import compare

    rows = compare(numbers)
    assert len(rows) == 37
    assert [row for row in rows if not row[1] <= row[2]] == []


def test_changed_numbers_are_told(numbers, tmp_path):
    from parity_ooal import OoalParityConfig

    with np.load(numbers) as file:
        data = {name: file[name] for name in file.files}
    data["out_image/pred"] = data["out_image/pred"] + 1e-5
    np.savez(tmp_path / "changed.npz", **data)
    assert not OoalParityConfig(tmp_path / "changed.npz").main()


def test_the_published_layout_is_known_to_the_last_key(parity_dir):
    lines = (parity_dir / "ooal_keys.tsv").read_text().splitlines()
    published = {name: shape for name, shape, _ in (line.split("\t") for line in lines)}
    with torch.device("meta"):
        own = {name: tuple(tensor.shape) for name, tensor in Ooal(OoalShape()).state_dict().items()}
    own |= unused_shapes(OoalShape())
    assert {name: "x".join(map(str, shape)) for name, shape in own.items()} == published


def test_all_faults_of_a_file_are_named_at_once(state, weights, tmp_path):
    faulty = {name: tensor for name, tensor in state.items() if name != "linear_cls.bias"}
    faulty |= {"lln_norm_2.weight": torch.zeros(3), "stranger": torch.zeros(1)}
    torch.save(faulty, tmp_path / "faulty.pth")
    with pytest.raises(CheckpointError) as error:
        load_ooal(tmp_path / "faulty.pth", **HEADS)
    for name in ("linear_cls.bias", "lln_norm_2.weight (3,) instead of (32,)", "stranger", "drive.google.com"):
        assert name in str(error.value)
    torch.save(state, tmp_path / "flat.pth")
    flat, wrapped = load_ooal(tmp_path / "flat.pth", **HEADS), load_ooal(weights, **HEADS)
    assert all(torch.equal(a, b) for a, b in zip(flat.parameters(), wrapped.parameters(), strict=True))


@pytest.mark.parametrize("number", ["9999", "999999999", "9" * 5000])
def test_a_layer_with_a_high_number_is_one_layer(state, tmp_path, number):
    strange = f"dino_model.blocks.{number}.x"
    torch.save(state | {strange: torch.zeros(1)}, tmp_path / "strange.pth")
    assert infer_shape(state | {strange: torch.zeros(1)}).depth <= TINY.depth + 1
    with pytest.raises(CheckpointError, match=strange):
        load_ooal(tmp_path / "strange.pth", **HEADS)


def test_missing_weights_are_said(tmp_path, own_cache):
    with pytest.raises(EncoderError, match=r"seen_best.*drive.google.com.*--models.ooal"):
        find_weights(None)
    (tmp_path / "weights").mkdir()
    fetched = tmp_path / "weights" / "ooal.pth"
    fetched.write_bytes(b"")
    assert find_weights(None, tmp_path / "P01_01") == find_weights(None, tmp_path / "data" / "P01_01") == fetched
    with pytest.raises(EncoderError, match=r"none\.pth is missing"):
        find_weights(tmp_path / "none.pth")


def test_names_that_the_prompts_hold_need_no_clip(weights, table):
    def absent():
        raise AssertionError("CLIP's table was asked for")

    learner = load_ooal(weights, **HEADS).prompt_learner
    rows = TokenRows("file", SEEN, learner, absent)
    names = ["look with photo", "cut", "pick out"]
    tokens, ends = rows(names)
    assert ends.tolist() == [13, 11, 12]
    torch.testing.assert_close(learner(tokens), learner(table[prompt_ids(names, 77, 8)]), atol=0, rtol=0)


def test_other_names_take_the_rows_of_clip(weights, table):
    learner = load_ooal(weights, **HEADS).prompt_learner
    tokens, _ = TokenRows("file", SEEN, learner, lambda: table)(["chop the onion"])
    torch.testing.assert_close(learner(tokens), learner(table[prompt_ids(["chop the onion"], 77, 8)]), atol=0, rtol=0)
    with pytest.raises(EncoderError, match="other tokens"):
        TokenRows("file", SEEN, learner, lambda: table + 1)(["chop the onion"])
    with pytest.raises(EncoderError, match="other tokens"):
        TokenRows("file", SEEN, learner, lambda: table[:, :8])(["chop the onion"])


def test_prompts_of_other_classes_are_refused(weights):
    learner = load_ooal(weights, **HEADS).prompt_learner
    with pytest.raises(EncoderError, match="not of the classes"):
        TokenRows("file", SEEN[::-1], learner, lambda: torch.zeros(0))
    with pytest.raises(EncoderError, match="36 classes"):
        TokenRows("file", UNSEEN, learner, lambda: torch.zeros(0))
    assert trained_names(25) == UNSEEN and trained_names(36) == SEEN
    with pytest.raises(EncoderError, match="7 classes"):
        trained_names(7)


def test_actions_are_scored_in_the_frame_itself(weights, table, tmp_path, monkeypatch):
    monkeypatch.setattr(ooal_baseline, "load_ooal", lambda path: load_ooal(path, **HEADS))
    monkeypatch.setattr(ooal_baseline.OoalBaseline, "_table", lambda self: table)
    monkeypatch.setattr(ooal_baseline, "SIDE", 70)
    seen = []
    original = ooal_baseline.rescaled_maps
    monkeypatch.setattr(
        ooal_baseline, "rescaled_maps", lambda *given: seen.append((given[1], original(*given))) or seen[-1][1]
    )
    datamanager = small_scene.datamanager(small_scene.write(tmp_path / "scene"))
    wanted = Wanted(tasks=("objects", "affordances"), baselines=("ooal",), models=BaselineModels(ooal=weights))
    found = evaluate(small_scene.KnowingModel(), datamanager, small_scene.make_query(), wanted=wanted).baselines["ooal"]
    assert set(found.classes) == {"affordance"}
    assert len(seen) == 2
    for frame, (picture, maps) in zip(small_scene.TEST, seen, strict=True):
        np.testing.assert_allclose(picture, small_scene.picture(frame) / 255.0, atol=1e-6)
        assert maps.shape == (small_scene.HEIGHT, small_scene.WIDTH, 1)
        assert maps.min() == 0 and maps.max() == pytest.approx(1)
    truth = [small_scene.object_masks(frame)[..., 0] for frame in small_scene.TEST]
    above = [maps[..., 0] > ooal_baseline.THRESHOLD for _, maps in seen]
    iou = sum((a & b).sum() for a, b in zip(above, truth, strict=True)) / sum(
        (a | b).sum() for a, b in zip(above, truth, strict=True)
    )
    assert found.totals["affordance_miou"] == pytest.approx(iou, abs=1e-3)
