"""EgoVideo: its towers against the published numbers, its loader, and its features in a scene's store."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_feature_encoders import write_scene
from torch.nn.functional import normalize

from divff_nerfstudio.cache_dirs import weights_dir
from divff_nerfstudio.checkpoints import CheckpointError
from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.features.clips import IMAGENET, ClipPreprocessing
from divff_nerfstudio.features.egovideo import encoder as egovideo
from divff_nerfstudio.features.egovideo.shape import PUBLISHED, EgoVideoShape, infer_shape
from divff_nerfstudio.features.egovideo.source import EgoVideoSource, EgoVideoSourceConfig
from divff_nerfstudio.features.egovideo.text import TextTower
from divff_nerfstudio.features.egovideo.tokenizer import WordPieces
from divff_nerfstudio.features.egovideo.video import VideoEncoder
from divff_nerfstudio.features.egovideo.weights import FILE, EgoVideoWeights
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.pretrained import EncoderError
from divff_nerfstudio.features.store import FeatureStore
from divff_nerfstudio.features.text import text_encoder
from divff_nerfstudio.features.tiles import Tiles
from divff_nerfstudio.query import QueryConfig, build_query

CPU = torch.device("cpu")
SCRIPTS = Path(__file__).parent.parent / "scripts"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "#", "c", "cut", "##s", "the", "bread", "cafe", "open", "general", "task"]
SHAPE = EgoVideoShape(
    patch=8,
    positions=17,
    width=32,
    depth=2,
    hidden=40,
    pooled=24,
    words=len(WORDS),
    text_width=32,
    text_layers=2,
    text_hidden=40,
    text_positions=24,
    dimension=12,
)


def write_weights(folder: Path, seed: int = 0, **changes: torch.Tensor | None) -> Path:
    """A random file of the published layout with its vocabulary; `changes` replace or remove entries."""
    torch.manual_seed(seed)
    state = VideoEncoder(SHAPE).state_dict() | TextTower(SHAPE).state_dict()
    state = {name: value + 0.1 * torch.randn_like(value) for name, value in state.items()}
    state |= {
        "visual.clip_pos_embed": torch.zeros(1, 17, 32),
        "visual.clip_decoder.0.head.weight": torch.zeros(3, 32),
        "textual.pooler.dense.bias": torch.zeros(32),
        "textual.embeddings.position_ids": torch.arange(24)[None],
        "textual.encoder.layer.2.crossattention.self.query.weight": torch.zeros(32, 32),
        "textual.encoder.layer.2.output.dense.bias": torch.zeros(32),
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({f"module.{name}": value for name, value in state.items() if value is not None}, folder / FILE)
    (folder / egovideo.VOCABULARY).write_text("\n".join(WORDS) + "\n")
    return folder / FILE


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("egovideo"))


@pytest.fixture(scope="module")
def scene_root(tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scenes") / "squares", frames=3, video=40, size=(20, 28))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", _refuse)
    egovideo.load_egovideo.cache_clear()


def _refuse(*arguments, **options):
    raise OSError("no network")


def extract(scene_root: Path, output: Path, **options) -> FeatureStore:
    sources = ExtractConfig(data=scene_root, output=output, device="cpu", sources=("egovideo",), **options)
    return FeatureStore.open(sources.main()[0])


@pytest.fixture
def numbers(parity_dir: Path, monkeypatch) -> Path:
    monkeypatch.syspath_prepend(SCRIPTS)
    return parity_dir / "egovideo_tiny.npz"


def test_it_equals_the_published_code(numbers):
    from parity_egovideo import compare

    rows = compare(numbers)
    assert len(rows) > 40 and all(difference <= allowed for _, difference, allowed in rows), rows


def test_the_comparison_notices_a_difference(numbers, tmp_path):
    from parity_egovideo import EgoVideoParityConfig, compare

    with np.load(numbers) as file:
        data = dict(file)
    data["sd/visual.blocks.1.attn.k_norm.weight"] = 1.01 * data["sd/visual.blocks.1.attn.k_norm.weight"]
    data["tok/texts"] = np.array([text + " pan" for text in data["tok/texts"]])
    np.savez(tmp_path / "other.npz", **data)
    wrong = {name for name, difference, allowed in compare(tmp_path / "other.npz") if difference > allowed}
    assert {"tokenizer/input_ids", "out_tanh/block_1", "out_erf/tokens_out"} <= wrong
    assert not {"out_tanh/block_0", "out_tanh/text_embed"} & wrong
    assert not EgoVideoParityConfig(tmp_path / "other.npz").main()


def test_half_precision_stays_close(numbers, tmp_path):
    with np.load(numbers) as file:
        data = dict(file)
    state = {name[3:]: torch.from_numpy(data[name]) for name in data if name.startswith("sd/")}
    torch.save(state, tmp_path / "tiny.pth")
    model = EgoVideoWeights(tmp_path / "tiny.pth", 4, (4, 8, 4)).video("tanh", CPU, torch.float16)
    with torch.inference_mode():
        found = normalize(model(torch.from_numpy(data["in/video"]).half()).float(), dim=-1)
    assert next(model.parameters()).dtype == torch.float16
    assert (found - torch.from_numpy(data["out_tanh/video_embed"])).abs().max() < 3e-3


def published_tensors(parity_dir: Path) -> dict[str, torch.Tensor]:
    with (parity_dir / "egovideo_keys.tsv").open() as file:
        rows = [row for row in csv.reader(file, delimiter="\t") if len(row) == 3 and row[1][0].isdigit()]
    return {name: torch.empty([int(axis) for axis in size.split("x")], device="meta") for name, size, _ in rows}


def test_the_published_layout_is_known_to_the_last_key(parity_dir, monkeypatch, tmp_path):
    tensors = published_tensors(parity_dir)
    assert len(tensors) == 1011 and infer_shape(tensors) == PUBLISHED
    assert PUBLISHED.image_size == 224 and PUBLISHED.consistent
    monkeypatch.setattr("divff_nerfstudio.features.egovideo.weights._read", lambda path: tensors)
    assert EgoVideoWeights(tmp_path / FILE).shape == PUBLISHED
    lost = [name for name in tensors if name.startswith(("visual.blocks.39.", "textual.encoder.layer.18."))]
    for name in lost:
        del tensors[name]
    with pytest.raises(CheckpointError) as error:
        EgoVideoWeights(tmp_path / FILE)
    assert all(name in str(error.value) for name in lost)


@pytest.mark.parametrize("number", ["9999", "999999999", "9" * 5000])
def test_a_layer_with_a_high_number_is_one_layer(weights, number):
    tensors = {name: value for name, value in EgoVideoWeights(weights)._tensors.items() if ".layer.2." not in name}
    extra = {
        f"visual.blocks.{number}.x": torch.zeros(1),
        f"textual.encoder.layer.{number}.crossattention.x": torch.zeros(1),
    }
    shape = infer_shape(tensors | extra)
    assert shape.depth <= SHAPE.depth + 1 and shape.text_layers <= SHAPE.text_layers + 1


def test_every_fault_of_a_file_is_in_one_message(tmp_path):
    changes = {
        "visual.blocks.1.ls2.gamma": None,
        "textual.encoder.layer.0.attention.self.key.bias": None,
        "visual.clip_projector.norm1_q.bias": torch.zeros(5),
        "text_projection": torch.zeros(32, 13),
        "visual.adapter.weight": torch.zeros(2),
        "textual.encoder.layer.1.crossattention.extra": torch.zeros(2),
    }
    faulty = {name: value for name, value in changes.items() if "crossattention" not in name}
    with pytest.raises(CheckpointError) as error:
        EgoVideoWeights(write_weights(tmp_path, **faulty))
    message = str(error.value)
    assert all(name in message for name in faulty) and "(32, 13)" in message and "\n" not in message
    assert "clip_decoder" not in message and "crossattention" not in message and "pooler" not in message
    known = {"visual.adapter.weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"unknown: visual\.adapter\.weight"):
        EgoVideoWeights(write_weights(tmp_path, **known))
    assert EgoVideoWeights(write_weights(tmp_path, **known), ignore_unknown=True).shape == SHAPE


def test_files_that_are_no_weights(weights, tmp_path):
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        EgoVideoWeights(cut)
    torch.save({"state_dict": torch.load(weights)}, tmp_path / "wrapped.pth")
    with pytest.raises(EncoderError, match="flat"):
        EgoVideoWeights(tmp_path / "wrapped.pth")
    torch.save({"module.visual": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="refused"):
        EgoVideoWeights(tmp_path / "code.pth")
    torch.save(torch.load(weights), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert EgoVideoWeights(tmp_path / "old.pth").fingerprint(VideoEncoder) == EgoVideoWeights(weights).fingerprint(
        VideoEncoder
    )
    with pytest.raises(EncoderError, match="clip-length"):
        EgoVideoWeights(weights, frames=3)


def test_word_pieces_end_without_a_separator():
    ids, mask = WordPieces(WORDS, length=6)(["Cuts the CAFÉ", "", "cut cut cut cut cut cut", "[SEP] zebra"])
    assert ids.tolist() == [[2, 6, 7, 8, 10, 0], [2, 0, 0, 0, 0, 0], [2, 6, 6, 6, 6, 6], [2, 3, 1, 0, 0, 0]]
    assert mask.sum(1).tolist() == [5, 1, 6, 3]


def test_vocabularies_that_do_not_fit(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS[:-1]))
    with pytest.raises(EncoderError, match=f"{len(WORDS) - 1} words, not the {len(WORDS)}"):
        WordPieces.read(tmp_path / "vocab.txt", len(WORDS))
    with pytest.raises(EncoderError, match=r"lacks \[CLS\]"):
        WordPieces(["[PAD]", "[UNK]", "cut"])


def test_preprocessing_crops_or_stretches():
    clip = np.zeros((1, 2, 8, 16, 3), np.uint8)
    clip[..., 4:12, :] = 255
    cropped = ClipPreprocessing(*IMAGENET, fit="crop")(clip, 8, CPU)
    assert cropped.shape == (1, 2, 3, 8, 8)
    white = (1 - torch.tensor(IMAGENET[0])) / torch.tensor(IMAGENET[1])
    torch.testing.assert_close(cropped, white[:, None, None].expand(1, 2, 3, 8, 8))
    stretched = ClipPreprocessing((0.5,) * 3, (0.5,) * 3, fit="stretch")(clip, 8, CPU)
    assert stretched[..., 0].eq(-1).all() and stretched[..., 3:5].eq(1).all()
    small = ClipPreprocessing(*IMAGENET)(clip, 4, CPU)
    portrait = ClipPreprocessing(*IMAGENET)(clip.transpose(0, 1, 3, 2, 4), 4, CPU)
    torch.testing.assert_close(portrait, small.mT)
    torch.testing.assert_close(small[..., 1:3], white[:, None, None].expand(1, 2, 3, 4, 2), atol=1e-5, rtol=0)


def test_clips_are_encoded_batch_by_batch(weights):
    model = egovideo.load_egovideo(weights, 4, "tanh", CPU)
    clips = np.random.default_rng(0).integers(0, 255, (5, 4, 11, 11, 3), dtype=np.uint8)
    sizes = []
    model.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    whole, parts = model.encode_clips(clips, batch=5), model.encode_clips(clips, batch=2)
    assert sizes == [5, 2, 2, 1] and whole.shape == (5, 12) and whole.dtype == torch.float32
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.norm(dim=-1), torch.ones(5))
    assert (whole - model.encode_clips(clips, "divff")).abs().max() > 1e-3
    assert (whole[0] - model.encode_clips(clips[:1, ::-1])[0]).abs().max() > 1e-4  # the order of frames counts
    assert model.encode_clips(clips[:0]).shape == (0, 12)


def test_features_of_a_scene_answer_queries(scene_root, weights, tmp_path):
    store = extract(scene_root, tmp_path / "features", egovideo=EgoVideoSourceConfig(weights=weights))
    header = store.header
    assert (header.kind, header.source, header.model) == ("video", "egovideo", FILE)
    assert header.settings["preprocessing"] == "egovideo" and header.settings["video_frames"]
    pictures = Pictures(load_scene(scene_root))
    index, table = store.frame_features(1)
    clip = pictures.clip(1, 4, 8)
    tiles = Tiles.of(*clip.shape[1:3], share=0.3, overlap=0.5)
    expected = egovideo.load_egovideo(weights, 4, "tanh", CPU).encode_clips(tiles.cut(clip))
    np.testing.assert_allclose(table, expected, atol=1e-3)
    np.testing.assert_array_equal(index, tiles.index())

    assert header.text_encoder is not None
    encoder = text_encoder(header.text_encoder)
    own = EgoVideoWeights(weights)
    with torch.inference_mode():
        direct = own.text(CPU, torch.float32)(*WordPieces(WORDS)(["#C C cuts the bread", "cut"]))
    torch.testing.assert_close(encoder(["#C C cuts the bread", "cut"]), normalize(direct, dim=-1))
    query = build_query(QueryConfig(features="video", prefix_video="#C C "), {"video": store}, text_encoder)
    asked = []
    original = query.encoders["video"]
    query.encoders["video"] = lambda phrases: asked.extend(phrases) or original(phrases)
    assert query.relevancies(torch.from_numpy(table), "video", ["cuts the bread"]).shape == (len(table), 1)
    assert asked == ["#C C cuts the bread", *header.negatives]


def test_text_as_long_as_the_tower_makes_it(scene_root, weights):
    config = EgoVideoSourceConfig(weights=weights, normalise_text=False)
    source = EgoVideoSource(Pictures(load_scene(scene_root)), "", CPU, config)
    found = text_encoder(source.text_encoder())(["cut"])
    assert abs(float(found.norm()) - 1) > 1e-2


def test_settings_of_the_published_features(scene_root, weights, tmp_path):
    published = EgoVideoSourceConfig(weights=weights, preprocessing="divff", lookup="floor", padding="black")
    store = extract(scene_root, tmp_path / "published", egovideo=published)
    tiles = Tiles.of(40, 56, share=0.3, overlap=0.5)
    np.testing.assert_array_equal(store.frame_features(0)[0], tiles.index("floor"))
    with pytest.raises(Exception, match=r"settings\.preprocessing: divff -> egovideo"):
        extract(scene_root, tmp_path / "published", egovideo=replace(published, preprocessing="egovideo"))


def test_published_tiles():
    tiles = Tiles.of(256, 456, share=0.3, overlap=0.5)
    assert (tiles.size, tiles.stride, tiles.rows, tiles.columns) == (76, 38, 7, 13)
    floor = tiles.index("floor")
    rows, columns = np.mgrid[:128, :228]
    first_centre = (76 - 1) / 2 - 38
    expected = np.floor((2 * rows - first_centre) / 38) * 13 + np.floor((2 * columns - first_centre) / 38)
    np.testing.assert_array_equal(floor[1::2, 1::2], expected)  # a pixel of 228x128 is looked up at its centre
    white = np.full((1, 256, 456, 3), 255, np.uint8)
    corner = tiles.cut(white, "black")[0, 0]
    assert corner[:38].max() == 0 and corner[:, :38].max() == 0 and corner[38:, 38:].min() == 255
    assert tiles.cut(white)[0, 0].min() == 255


def test_clips_before_the_first_frame_of_the_video_are_shifted_inside(tmp_path):
    root = write_scene(tmp_path / "late", video=40)
    for number in range(6):
        (root / "high_res_video" / f"frame_{number:010d}.jpg").unlink()
    pictures = Pictures(load_scene(root))
    assert pictures.clip_numbers(0, 4, 8) == [6, 14, 22, 30]
    assert pictures.clip_numbers(4, 4, 8) == [13, 21, 29, 37]


def test_missing_weights_are_said_in_one_sentence(scene_root, tmp_path):
    with pytest.raises(EncoderError) as error:
        extract(scene_root, tmp_path)
    message = str(error.value)
    assert str(weights_dir() / FILE) in message and "https://drive.google.com" in message and "\n" not in message
    assert "--egovideo.weights" in message and not (tmp_path / "video").exists()


def test_weights_and_vocabulary_may_lie_in_their_usual_place(scene_root, weights, tmp_path, own_cache):
    shutil.copytree(weights.parent, own_cache / "weights")
    store = extract(scene_root, tmp_path / "features")
    assert store.header.text_encoder is not None and store.header.text_encoder["weights"] is None
    assert text_encoder(store.header.text_encoder)(["cut"]).shape == (1, 12)
    shutil.copytree(weights.parent, scene_root.parent / "weights")
    beside = EgoVideoSource(Pictures(load_scene(scene_root)), "", CPU).text_encoder()
    assert beside["weights"] == str(scene_root.parent / "weights" / FILE)
    shutil.rmtree(scene_root.parent / "weights")
    moved = {**store.header.text_encoder, "weights": str(tmp_path / "gone.pth")}
    assert text_encoder(moved)(["cut"]).shape == (1, 12)


def test_without_the_vocabulary_features_are_extracted_but_not_queried(scene_root, weights, tmp_path, capsys):
    shutil.copy(weights, tmp_path / "alone.pth")
    store = extract(scene_root, tmp_path / "features", egovideo=EgoVideoSourceConfig(weights=tmp_path / "alone.pth"))
    assert "vocab.txt" in capsys.readouterr().out
    assert store.header.text_encoder is not None
    with pytest.raises(EncoderError, match=r"fetch vocab\.txt .*--egovideo\.vocabulary"):
        text_encoder(store.header.text_encoder)


def test_queries_by_other_weights_are_refused(scene_root, tmp_path):
    path = write_weights(tmp_path / "weights")
    store = extract(scene_root, tmp_path / "features", egovideo=EgoVideoSourceConfig(weights=path))
    write_weights(tmp_path / "weights", seed=1)
    assert store.header.text_encoder is not None
    with pytest.raises(EncoderError, match="other weights"):
        text_encoder(store.header.text_encoder)
