"""Encoders and the three sources, with tiny random models of open_clip's own classes through the real loading code."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import tokenizers
import torch
import transformers
from mutations import bounded
from PIL import Image
from safetensors.torch import load_file, save_file

from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features import encoder_loading, encoders
from divff_nerfstudio.features.autoencoder import AutoencoderConfig, load_autoencoder
from divff_nerfstudio.features.encoder_loading import load_encoder
from divff_nerfstudio.features.encoders import Encoder
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.features.open_clip_source import PatchSource, SegmentSource, SegmentSourceConfig, TileSource
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.pretrained import EncoderError
from divff_nerfstudio.features.segments import ColourSegmenterConfig, Segmenter
from divff_nerfstudio.features.sources import SOURCES, source_class
from divff_nerfstudio.features.store import NO_FEATURE, FeatureStore, FeatureStoreError
from divff_nerfstudio.features.text import text_encoder
from divff_nerfstudio.features.tiles import Tiles
from divff_nerfstudio.query import QueryConfig, build_query

CPU = torch.device("cpu")
OPEN_CLIP = ("segments", "clip-tiles", "patches")
TOWERS = {
    "transformer": {"image_size": 16, "patch_size": 8, "width": 72, "layers": 2, "head_width": 36},
    "residual": {"image_size": 32, "width": 8, "layers": [1, 1, 1, 1], "head_width": 64},
}


def write_encoder(folder: Path, clip_tower: bool = True, seed: int = 0, tower: str = "transformer") -> str:
    """A random encoder in open_clip's own layout."""
    torch.manual_seed(seed)
    folder.mkdir(exist_ok=True)
    merges = "\n".join(["#version: 0.2", "m u", "mu g</w>", "c u"])
    with gzip.open(folder / encoder_loading.MERGES, "wb") as file:
        file.write(merges.encode())
    vocabulary = open_clip.SimpleTokenizer(bpe_path=str(folder / encoder_loading.MERGES)).vocab_size
    shape = {
        "embed_dim": 12,
        "vision_cfg": TOWERS[tower],
        "text_cfg": {"context_length": 8, "vocab_size": vocabulary, "width": 16, "heads": 2, "layers": 1},
    }
    model = open_clip.CLIP(**shape)
    save_file(
        {key: value.half().contiguous() for key, value in model.state_dict().items()}, folder / encoder_loading.WEIGHTS
    )
    config: dict = {"model_cfg": shape, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    if clip_tower:
        config["clip_tower"] = TOWERS[tower]
        second = open_clip.CLIP(**shape).visual
        weights = {key: value.half().contiguous() for key, value in second.state_dict().items()}
        save_file(weights, folder / encoder_loading.CLIP_WEIGHTS)
    (folder / encoder_loading.CONFIG).write_text(json.dumps(config))
    return str(folder)


def write_scene(root: Path, frames: int = 5, step: int = 3, video: int | None = 14, size: tuple[int, int] = (16, 28)):
    """A scene of coloured squares; the video's frames are twice as large."""
    (root / "frames").mkdir(parents=True)
    height, width = size

    def picture(number: int, factor: int) -> Image.Image:
        image = np.full((height * factor, width * factor, 3), (60, 120, 180), np.uint8)
        left = number * factor
        image[4 * factor : 10 * factor, left : left + 6 * factor] = (200, 30, 30)
        return Image.fromarray(image)

    numbers = [1 + step * i for i in range(frames)]
    names = [f"IMG_{number:010d}.bmp" for number in numbers]
    for number, name in zip(numbers, names, strict=True):
        picture(number, 1).save(root / "frames" / name)
    if video is not None:
        (root / "high_res_video").mkdir()
        for number in range(video):
            picture(number, 2).save(root / "high_res_video" / f"frame_{number:010d}.jpg")
    pose = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]]
    ids = list(range(frames))
    meta = {
        "ids_all": ids,
        "ids_train": ids[:-2],
        "ids_val": ids[-2:-1],
        "ids_test": ids[-1:],
        "images": dict(zip(ids, names, strict=True)),
        "poses": dict.fromkeys(ids, pose),
        "nears": dict.fromkeys(ids, 0.1),
        "fars": dict.fromkeys(ids, 5.0),
        "intrinsics": [[20.0, 0, width / 2], [0, 20.0, height / 2], [0, 0, 1]],
    }
    (root / "meta.json").write_text(json.dumps(meta))
    return root


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> str:
    return write_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture(scope="module")
def scene_root(tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scenes") / "squares")


@pytest.fixture(autouse=True)
def no_user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIVFF_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_embeddings_have_unit_length_and_depend_on_input(encoder_folder):
    encoder = load_encoder(encoder_folder)
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (9, 5, 3), dtype=np.uint8), np.zeros((30, 31, 3), np.uint8)]
    clips = random.integers(0, 255, (3, 4, 7, 7, 3), dtype=np.uint8)
    for found, count in (
        (encoder.encode_images(pictures), 2),
        (encoder.encode_clips(clips), 3),
        (encoder.encode_text(["a mug", "a cup", "mug"]), 3),
    ):
        assert found.shape == (count, encoder.dimension) and found.dtype == torch.float32
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(count))
        assert not torch.allclose(found[0], found[1])
    assert encoder.encode_images([]).shape == (0, encoder.dimension)


def test_a_clip_is_a_mosaic_in_reading_order(encoder_folder):
    encoder = load_encoder(encoder_folder)
    clip = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 80, 160, 240)])
    mosaic = np.block([[clip[0, ..., 0], clip[1, ..., 0]], [clip[2, ..., 0], clip[3, ..., 0]]])[..., None].repeat(3, -1)
    assert encoder.clip_tower is not None
    swapped = Encoder("swapped", encoder.model, encoder._tokenizer, [0.5] * 3, [0.5] * 3)
    swapped.model.visual, kept = encoder.clip_tower, swapped.model.visual
    try:
        torch.testing.assert_close(encoder.encode_clips(clip[None]), swapped.encode_images([mosaic]))
    finally:
        swapped.model.visual = kept
    with pytest.raises(EncoderError, match="clips of 4"):
        encoder.encode_clips(clip[None, :3])


def test_without_clip_tower_a_clip_is_the_mean_of_its_pictures(tmp_path):
    encoder = load_encoder(write_encoder(tmp_path / "plain", clip_tower=False))
    clips = np.random.default_rng(0).integers(0, 255, (2, 3, 8, 8, 3), dtype=np.uint8)
    expected = torch.stack([encoder.encode_images(list(clip)).mean(0) for clip in clips])
    torch.testing.assert_close(encoder.encode_clips(clips), torch.nn.functional.normalize(expected, dim=-1))


def patch_tokens(encoder: Encoder, picture: np.ndarray, scale: float = 1.0) -> torch.Tensor:
    return encoder.tokens(encoder.stretched_whole(picture, scale))[0]


def test_patch_tokens_cover_the_picture_in_its_own_shape(encoder_folder):
    encoder = load_encoder(encoder_folder)
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, 16:] = 255
    assert patch_tokens(encoder, picture).shape == (2, 4, 72)
    assert patch_tokens(encoder, picture, scale=2.0).shape == (4, 8, 72)
    square = patch_tokens(encoder, picture[:, 8:24])
    reference = encoder.model.visual.forward_intermediates(  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        encoder._normalised(encoders.stretched([picture[:, 8:24]], (16, 16))),
        indices=1,
        normalize_intermediates=True,
        intermediates_only=True,
    )["image_intermediates"][0][0].permute(1, 2, 0)
    torch.testing.assert_close(square, reference)


def test_a_residual_network_serves_as_well(tmp_path):
    encoder = load_encoder(write_encoder(tmp_path / "residual", tower="residual"))
    pictures = np.random.default_rng(0).integers(0, 255, (4, 20, 36, 3), dtype=np.uint8)
    assert encoder.encode_images(pictures).shape == encoder.encode_clips(pictures[None].repeat(4, 0)).shape == (4, 12)
    assert patch_tokens(encoder, pictures[0]).shape == (4, 8, 128)
    assert patch_tokens(encoder, pictures[0], scale=2.0).shape == (8, 14, 128)


def test_any_model_of_open_clip_with_own_weights(tmp_path, monkeypatch):
    configs = tmp_path / "configs"
    configs.mkdir()
    shape = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    }
    (configs / "Tiny-16.json").write_text(json.dumps(shape))
    open_clip.add_model_config(configs)
    weights = tmp_path / "tiny.pt"
    torch.save(open_clip.CLIP(**shape).state_dict(), weights)
    first = load_encoder(f"Tiny-16/{weights}")
    assert first.encode_text(["a mug"]).shape == (1, 12) and first.input_size == (16, 16)
    weights.write_bytes(weights.read_bytes()[:-1000])
    load_encoder.cache_clear()
    with pytest.raises(EncoderError, match=r"tiny\.pt does not fit"):
        load_encoder(f"Tiny-16/{weights}")


def test_weights_that_cannot_be_had_are_said_in_one_sentence(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "create_model", refuse)
    with pytest.raises(EncoderError) as error:
        load_encoder("ViT-B-16/laion2b_s34b_b88k")
    message = str(error.value)
    assert "https://huggingface.co/laion/CLIP-ViT-B-16-laion2B-s34B-b88K" in message
    assert "--encoder ViT-B-16/PATH_OF_THE_FILE" in message and "\n" not in message


@pytest.mark.parametrize(
    ("name", "said"),
    [("ViT-B-99/x", "no encoder"), ("ViT-B-16/x", "laion2b_s34b_b88k"), ("ViT-B-16", "neither a file nor a tag")],
)
def test_unknown_encoders(name, said):
    with pytest.raises(EncoderError, match=said):
        load_encoder(name)


@pytest.mark.parametrize("file", [encoder_loading.WEIGHTS, encoder_loading.CLIP_WEIGHTS, encoder_loading.CONFIG])
def test_damaged_encoder_folder(tmp_path, file):
    folder = write_encoder(tmp_path / "damaged")
    path = Path(folder) / file
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(EncoderError, match="copy"):
        load_encoder(folder)
    path.unlink()
    with pytest.raises(EncoderError, match=file):
        load_encoder(folder)


def test_clip_numbers_stay_inside(scene_root):
    pictures = Pictures(load_scene(scene_root))
    assert pictures.clip_numbers(0, 4, 2) == [1, 3, 5, 7]
    assert pictures.clip_numbers(4, 4, 2) == [7, 9, 11, 13]  # frame 13 is the last
    assert pictures.clip_numbers(4, 4, 100) == [0, 0, 0, 13]
    assert pictures.sharpest(0).shape == (32, 56, 3)
    assert pictures.clip(0, 4, 2).shape == (4, 32, 56, 3)


def test_pictures_of_one_size_where_the_video_lacks_a_frame(tmp_path):
    pictures = Pictures(load_scene(write_scene(tmp_path / "short video", video=13)))
    assert {pictures.sharpest(i).shape for i in range(5)} == {(16, 28, 3)}
    assert pictures.clip(4, 4, 2).shape == (4, 32, 56, 3)


def test_sampled_frames_stand_in_for_the_video(tmp_path, encoder_folder, capsys):
    scene = load_scene(write_scene(tmp_path / "no video", video=None))
    pictures = Pictures(scene)
    assert pictures.clip_numbers(0, 4, 2) == [1, 4, 4, 7]
    assert pictures.sharpest(0).shape == (16, 28, 3)
    np.testing.assert_array_equal(pictures.clip(0, 4, 2)[3], scene.frame(2))
    TileSource(pictures, encoder_folder, CPU)
    assert "sampled frames" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("size", [(64, 114), (16, 28), (7, 5), (256, 456)])
def test_each_pixel_takes_the_nearest_tile(size):
    tiles = Tiles.of(*size, share=0.3, overlap=0.5)
    assert tiles.size == max(2, int(0.3 * size[0]))
    index = tiles.index()
    centres = np.moveaxis(np.mgrid[: tiles.rows, : tiles.columns], 0, -1).reshape(-1, 2) * tiles.stride
    step = max(1, size[0] // 16)
    pixels = np.moveaxis(np.mgrid[: size[0] : step, : size[1] : step], 0, -1) + 0.5
    distance = np.linalg.norm(pixels[:, :, None] - centres, axis=-1)
    chosen = np.take_along_axis(distance, index[::step, ::step, None].astype(int), axis=-1)
    np.testing.assert_allclose(chosen[..., 0], distance.min(-1))


def test_tiles_show_what_lies_around_their_centre():
    picture = np.random.default_rng(0).integers(0, 255, (2, 40, 60, 3), dtype=np.uint8)
    tiles = Tiles.of(40, 60, share=0.3, overlap=0.5)
    cut = tiles.cut(picture)
    assert cut.shape == (tiles.rows * tiles.columns, 2, 12, 12, 3)
    row, column = 2, 3
    expected = picture[:, row * 6 - 6 : row * 6 + 6, column * 6 - 6 : column * 6 + 6]
    np.testing.assert_array_equal(cut[row * tiles.columns + column], expected)


def test_segmenter_finds_things_whole():
    picture = np.full((256, 456, 3), (70, 110, 150), np.uint8)
    picture[160:] = (150, 120, 90)
    cup, plate = np.zeros((256, 456), bool), np.zeros((256, 456), bool)
    cup[115:145, 80:112] = True
    plate[192:232, 240:360] = True
    picture[cup] = (200, 20, 20)
    picture[122:136, 88:104] = (240, 240, 240)  # a label on the cup
    picture[plate] = (30, 140, 60)
    noise = np.random.default_rng(0).normal(0, 3, picture.shape)
    segments = ColourSegmenterConfig().setup().segment((picture + noise).clip(0, 255).astype(np.uint8))
    assert segments.shape == (256, 456) and set(np.unique(segments)) == {0, 1, 2, 3}
    for thing in (cup, plate):
        best = max((thing & (segments == s)).sum() / (thing | (segments == s)).sum() for s in range(4))
        assert best > 0.9


def test_a_pixel_has_the_feature_of_its_segment(scene_root, encoder_folder):
    pictures = Pictures(load_scene(scene_root))
    source = SegmentSource(pictures, encoder_folder, CPU, SegmentSourceConfig(segmenter="colour"))

    class Halves(Segmenter):
        def segment(self, picture):
            segments = np.full(picture.shape[:2], -1)
            segments[:, :20] = 0
            segments[0, 30] = 1  # too small
            return segments

        def settings(self):
            return {"name": "halves"}

    source.segmenter = Halves()
    features = source.extract(0)
    picture = pictures.sharpest(0)
    assert (features.index[:, :20] == 0).all() and (features.index[:, 20:] == NO_FEATURE).all()
    half = picture[:, :20]
    square = np.zeros((32, 32, 3), np.uint8)
    square[:, 6:26] = half
    masked, boxed = source.encoder.encode_images([square]), source.encoder.encode_images([half])
    expected = torch.nn.functional.normalize(0.75 * masked + 0.25 * boxed, dim=-1).numpy()
    np.testing.assert_allclose(features.table, expected, atol=1e-6)

    source.config = SegmentSourceConfig(tiles=True)
    filled = source.extract(0)
    assert (filled.index != NO_FEATURE).all() and (filled.index[:, :20] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(filled.table, axis=-1), 1, atol=1e-5)


def test_the_regulariser_keeps_what_differs(scene_root, encoder_folder, tmp_path):
    source = PatchSource(Pictures(load_scene(scene_root)), encoder_folder, CPU)
    random = np.random.default_rng(0)
    rows = (random.normal(size=(5000, 72)) * np.where(np.arange(72) < 5, 10, 0.01) + 3).astype(np.float16)
    chunks = list(source.reduce(rows, tmp_path))
    reduced = np.concatenate(chunks)
    assert reduced.shape == (5000, 64) and len(chunks) > 1
    np.testing.assert_allclose(np.linalg.norm(reduced, axis=-1), 1, atol=1e-5)
    centred = rows[:, :5].astype(np.float32) - rows[:, :5].astype(np.float32).mean(0)
    cosine = (centred[0] @ centred[1]) / np.linalg.norm(centred[0]) / np.linalg.norm(centred[1])
    assert abs(reduced[0] @ reduced[1] - cosine) < 0.01


def extract(scene_root: Path, encoder: str, output: Path, **options) -> dict[str, FeatureStore]:
    """Extracts by the sources that need no other weights than the encoder's."""
    options = {"sources": OPEN_CLIP, "segments": SegmentSourceConfig(segmenter="colour"), **options}
    config = ExtractConfig(data=scene_root, encoder=encoder, output=output, device="cpu", **options)
    return {path.name: FeatureStore.open(path) for path in config.main()}


def test_extraction_of_all_kinds(scene_root, encoder_folder, tmp_path):
    stores = extract(scene_root, encoder_folder, tmp_path / "features")
    assert set(stores) == {"image", "video", "regulariser"}
    rows, columns = (grid.ravel() for grid in np.mgrid[:16, :28])
    for kind, store in stores.items():
        features, valid = store.lookup(np.full(len(rows), 2), rows, columns)
        assert valid.all(), kind
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(rows)), atol=2e-3, rtol=0)
        assert store.header.fingerprint == load_encoder(encoder_folder).fingerprint
        assert len(store) == 5 and store.header.image_size == [16, 28]
    assert stores["image"].header.negatives == ["object", "things", "stuff", "hands"]
    assert stores["regulariser"].header.text_encoder is None and stores["regulariser"].dimension == 64
    entry = stores["video"].header.text_encoder
    assert entry is not None and text_encoder(entry)(["cut"]).shape == (1, stores["video"].dimension)
    assert text_encoder(entry) is text_encoder(dict(entry))


def test_killed_extraction_goes_on_and_equals_the_unbroken_one(scene_root, encoder_folder, tmp_path, monkeypatch):
    whole = extract(scene_root, encoder_folder, tmp_path / "whole")
    encoded = []
    original = PatchSource.encode

    def dying(self, prepared):
        if len(encoded) == 3:
            encoded.append("died")
            raise KeyboardInterrupt
        encoded.append(len(prepared))
        return original(self, prepared)

    monkeypatch.setattr(PatchSource, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        extract(scene_root, encoder_folder, tmp_path / "broken")
    stores = extract(scene_root, encoder_folder, tmp_path / "broken")
    assert encoded == [1, 1, 1, "died", 1, 1]
    for kind, store in stores.items():
        for frame in range(5):
            for one, other in zip(store.frame_features(frame), whole[kind].frame_features(frame), strict=True):
                np.testing.assert_array_equal(one, other)


def test_other_settings_are_named_and_replaced_only_when_asked(scene_root, encoder_folder, tmp_path):
    one = {"sources": ("image",)}
    extract(scene_root, encoder_folder, tmp_path / "features", **one)
    changed = SegmentSourceConfig(masked_weight=0.5, segmenter="colour")
    with pytest.raises(FeatureStoreError, match=r"settings\.masked_weight: 0\.75 -> 0\.5"):
        extract(scene_root, encoder_folder, tmp_path / "features", segments=changed, **one)
    stores = extract(scene_root, encoder_folder, tmp_path / "features", segments=changed, overwrite=True, **one)
    assert stores["image"].header.settings["masked_weight"] == 0.5


def test_text_of_another_encoder_is_refused(scene_root, tmp_path):
    folder = write_encoder(tmp_path / "encoder")
    store = extract(scene_root, folder, tmp_path / "features", sources=("clip-tiles",))["video"]
    write_encoder(tmp_path / "encoder", seed=1)
    load_encoder.cache_clear()
    assert store.header.text_encoder is not None
    with pytest.raises(EncoderError, match="other weights"):
        text_encoder(store.header.text_encoder)


def test_text_need_not_be_normalised(encoder_folder):
    found = text_encoder({"encoder": encoder_folder, "normalise": False})(["a mug"])
    assert abs(float(found.norm()) - 1) > 1e-3


def test_own_sources_by_module_and_class():
    assert source_class("divff_nerfstudio.features.open_clip_source:TileSource") is TileSource
    for name, said in (
        ("nothing", "choose from"),
        ("no.module:Class", "cannot be imported"),
        ("pathlib:Path", "no FeatureSource"),
    ):
        with pytest.raises(DivffError, match=said):
            source_class(name)


def test_the_documentations_own_source_extracts(scene_root, tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "docs" / "feature-sources.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    assert code.count("\n") < 40
    (tmp_path / "documented_source.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    name = re.search(r'`"(mean-colours)": "\w+(\.\w+)+:MeanColours"`', text)[1]
    monkeypatch.setitem(SOURCES, name, "documented_source:MeanColours")  # the line of one that comes with the package
    for source, options, shape in (("documented_source:MeanColours", (), (9, 16)), (name, ("rows=6",), (6, 16))):
        stores = extract(scene_root, "demo", tmp_path / source[:4], sources=(source,), own=options)
        index, table = stores["regulariser"].frame_features(0)
        assert index.shape == shape and table.shape == (shape[0] * shape[1], 3)


def test_the_text_encoder_of_ones_own_source_travels_with_its_store(scene_root, tmp_path, monkeypatch):
    monkeypatch.setenv("DIVFF_PLUGINS", "other:Thing, plain_source:PlainWords")
    store = extract(scene_root, "none", tmp_path / "features", sources=("plain_source:AskedSource",))["image"]
    assert store.header.source == "asked" and store.dimension == 3
    query = build_query(QueryConfig(), {"image": FeatureStore.open(store.directory)}, text_encoder)
    assert query.negatives("image") == ("grey",)
    colours = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
    found = query.relevancies(colours, "image", ["red", "blue"])
    assert found[0, 0] > 0.9 > 0.1 > found[0, 1] and found[1, 1] > 0.9 > 0.1 > found[1, 0]


def test_a_scenes_autoencoder_is_kept_beside_its_codes(scene_root, encoder_folder, tmp_path):
    shape = AutoencoderConfig(encoder_widths=(10, 6), decoder_widths=(8,), epochs=2)
    segments = SegmentSourceConfig(segmenter="colour", codes=True, autoencoder=shape)
    options = {"sources": ("segments",), "segments": segments}
    plain = extract(scene_root, encoder_folder, tmp_path / "plain", sources=("segments",))["image"]
    store = extract(scene_root, encoder_folder, tmp_path / "codes", **options)["image"]
    assert store.dimension == 6 and store.header.decoder == "autoencoder.pth" and plain.header.decoder is None
    autoencoder = load_autoencoder(store.directory / "autoencoder.pth")
    _, embeddings = plain.frame_features(3)
    _, codes = store.frame_features(3)
    np.testing.assert_allclose(codes, autoencoder.encode(torch.from_numpy(embeddings)).numpy(), atol=2e-3)
    decoded = store.decode(torch.from_numpy(codes))
    assert decoded.shape == (len(codes), plain.dimension)
    torch.testing.assert_close(decoded, autoencoder.decode(torch.from_numpy(codes)))
    torch.testing.assert_close(plain.decode(torch.from_numpy(embeddings)), torch.from_numpy(embeddings))

    query = build_query(QueryConfig(), {"image": store}, text_encoder)
    positives, negatives = (text_encoder(store.header.text_encoder or {})(words) for words in (["mug"], ["cu"]))
    found = query.relevancies(torch.from_numpy(codes), "image", ["mug"])
    assert found.shape == (len(codes), 1) and positives.shape[1] == negatives.shape[1] == plain.dimension

    (store.directory / "autoencoder.pth").rename(tmp_path / "kept.pth")
    with pytest.raises(FeatureStoreError, match=r"autoencoder\.pth is missing"):
        FeatureStore.open(store.directory)


def test_an_interrupted_autoencoder_goes_on_at_its_epoch(scene_root, encoder_folder, tmp_path, monkeypatch):
    shape = AutoencoderConfig(encoder_widths=(10, 6), decoder_widths=(8,), epochs=5, candidates=2)
    segments = SegmentSourceConfig(segmenter="colour", codes=True, autoencoder=shape)
    options = {"sources": ("segments",), "segments": segments}
    whole = extract(scene_root, encoder_folder, tmp_path / "whole", **options)["image"]
    epochs = []

    def note(name, text=""):
        epochs.append(text)
        if text.endswith("3/5") and "died" not in epochs:
            epochs.append("died")
            raise KeyboardInterrupt
        return name

    monkeypatch.setattr("divff_nerfstudio.features.extract._title", note)
    with pytest.raises(KeyboardInterrupt):
        extract(scene_root, encoder_folder, tmp_path / "broken", **options)
    broken = extract(scene_root, encoder_folder, tmp_path / "broken", **options)["image"]
    assert [text[-3:] for text in epochs if "epoch" in text] == ["1/5", "2/5", "3/5", "3/5", "4/5", "5/5"]
    np.testing.assert_array_equal(broken.table, whole.table)
    assert sorted(path.name for path in broken.directory.iterdir()) == sorted(
        ["autoencoder.pth", "header.json", "index.npy", "offsets.npy", "table.npy"]
    )


def test_siglip_through_open_clip(scene_root, tmp_path):
    """A model as SigLIP's: a tower of timm with attention pooling, a bias of logits, its own tokenizer."""
    torch.manual_seed(0)
    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "a", "mug", "cup"))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    folder = tmp_path / "siglip"
    fast.save_pretrained(folder)
    shape = {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "vision_cfg": {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {
            "context_length": 6,
            "vocab_size": len(words),
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 16,
            "heads": 2,
            "layers": 1,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    }
    model = open_clip.CustomTextCLIP(**shape)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / encoder_loading.WEIGHTS)
    config = {"model_cfg": {**shape, "custom_text": True}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / encoder_loading.CONFIG).write_text(json.dumps(config))
    stores = extract(scene_root, str(folder), tmp_path / "features")
    assert stores["image"].dimension == stores["video"].dimension == 64
    entry = stores["image"].header.text_encoder
    assert entry is not None
    found = text_encoder(entry)(["A mug!", "a cup"])
    with torch.no_grad():  # canonicalised: small letters, no punctuation
        expected = model.eval().encode_text(torch.tensor([[2, 3, 0, 0, 0, 0], [2, 4, 0, 0, 0, 0]]), normalize=True)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("files", [("safetensors",), ("safetensors", "bin")])
def test_a_silent_hubs_cache_is_enough(tmp_path, monkeypatch, files):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--somebody--tiny"
    for folder in ("refs", "snapshots"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    plain = Path(write_encoder(repository / "snapshots" / "abc", clip_tower=False))
    (plain / encoder_loading.MERGES).unlink()
    config = json.loads((plain / encoder_loading.CONFIG).read_text())
    config["model_cfg"]["text_cfg"] |= {"vocab_size": 49408, "context_length": 77}
    torch.manual_seed(0)
    state = open_clip.CLIP(**config["model_cfg"]).state_dict()
    save_file(state, plain / encoder_loading.WEIGHTS)
    (plain / encoder_loading.CONFIG).write_text(json.dumps(config))
    load_encoder.cache_clear()
    found = load_encoder("hf-hub:somebody/tiny")
    assert found.dimension == 12 and float(found._mean[0]) == 0.5
    asked = {}

    def create(name, **options):
        asked.update(options, name=name)
        return open_clip.CLIP(**config["model_cfg"])

    name = "open_clip_model.safetensors"
    if "bin" in files:
        name = "open_clip_pytorch_model.bin"
        (plain / encoder_loading.WEIGHTS).rename(plain / name)
    monkeypatch.setattr(open_clip, "create_model", create)
    monkeypatch.setattr(encoder_loading, "_known", lambda *_: {"hf_hub": "somebody/tiny/", "mean": [0.25] * 3})
    load_encoder("ViT-B-16/laion2b_s34b_b88k")
    assert asked["pretrained"] == str(plain / name) and asked["force_preprocess_cfg"]["mean"] == [0.25] * 3
    shutil.rmtree(repository)
    for name in ("hf-hub:somebody/tiny", "ViT-B-16/laion2b_s34b_b88k"):
        load_encoder.cache_clear()
        with pytest.raises(EncoderError, match="the cache has no sound copy"):
            load_encoder(name)


@pytest.mark.parametrize("fault", ["LocalEntryNotFoundError", "HfHubHTTPError", "ConnectionError"])
def test_what_cannot_be_looked_at_is_not_followed(monkeypatch, fault):
    import huggingface_hub.errors
    import requests

    error = requests.ConnectionError if fault == "ConnectionError" else getattr(huggingface_hub.errors, fault)
    followed = []

    def break_off(*_, **__):
        raise error("the line is cut")

    monkeypatch.setattr(encoder_loading, "unreachable_hub", lambda: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", break_off)
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: followed.append("model"))
    load_encoder.cache_clear()
    with pytest.raises(EncoderError, match=r"cannot be had .*the line is cut"):
        load_encoder("hf-hub:somebody/tiny")
    assert not followed


def described(**changes: object) -> Callable[[Path], object]:
    """Changes a description, ``text__width=3`` in the text tower's."""

    def change(folder: Path) -> None:
        path = folder / encoder_loading.CONFIG
        content = json.loads(path.read_text())
        for key, value in changes.items():
            tower, _, inner = key.rpartition("__")
            owner = content["model_cfg"][f"{tower}_cfg"] if tower else content
            owner[inner] = value
        path.write_text(json.dumps(content))

    return change


def weighed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], object]:
    name = encoder_loading.WEIGHTS
    return lambda folder: save_file({k: change(v) for k, v in load_file(folder / name).items()}, folder / name)


def piped(name: str) -> Callable[[Path], object]:
    return lambda folder: ((folder / name).unlink(), os.mkfifo(folder / name))


def packed(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / encoder_loading.MERGES).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (described(preprocess_cfg=None), "preprocess_cfg"),
        (described(preprocess_cfg={"std": [0, 1, 1]}), "greater than 0"),
        (described(preprocess_cfg={"mean": "abc"}), "preprocess_cfg.mean"),
        (described(model_cfg=[]), "model_cfg"),
        (described(clip_length=10**9), "clip_length"),
        (described(vision__layers=[1, 1, 1, 1], vision__head_width=0), "cannot be built"),
        (described(text__heads=3), "cannot be built"),
        (described(text__layers=10**9), "layers is 1000000000"),
        (described(text__width=4096, text__layers=100), "and its file of weights"),
        (described(vision__image_size=10**6), "and its file of weights"),
        (described(text__vocab_size=700), "cannot be built"),
        (weighed(lambda value: value * float("nan")), "not finite"),
        (weighed(lambda value: value.int()), "quantised"),
        (piped(encoder_loading.WEIGHTS), "no ordinary file"),
        (piped(encoder_loading.CONFIG), "is missing"),
        (packed(b"noise"), "cannot be built"),
        (packed(gzip.compress(b"m u\n" * 50)[:30]), "cannot be built"),
        (packed(gzip.compress(b"m u\nc u\n")), "vocab_size another"),
        (packed(gzip.compress(bytes(2**20), 1) * 100), "longer than any vocabulary"),
    ],
)
def test_an_encoder_of_a_stranger_is_refused_before_it_is_built(tmp_path, damage, said):
    folder = Path(write_encoder(tmp_path / "encoder"))
    damage(folder)
    with bounded(2**30), pytest.raises(EncoderError) as error:
        load_encoder(str(folder))
    message = str(error.value)
    assert said in message and str(folder) in message and message.endswith(".") and "\n" not in message
