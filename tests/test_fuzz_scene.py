"""Hundreds of damages to every file of a scene folder and of a feature store: one sentence, or what is legitimate.

What a damaged file may still give, beside what the whole one gave, is told in `LEGITIMATE`: values are not written
twice, so that one that was changed into another value of its kind and range cannot be told from the right one.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_tiny_scene
from mutations import mutations_of, outcome

from divff_nerfstudio.data.annotations import (
    affordance_annotations,
    check_annotations,
    ground_truth,
    moving_mask,
    object_annotations,
)
from divff_nerfstudio.data.detections import read_detections
from divff_nerfstudio.data.scene import SceneFolder, load_scene
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.store import FeatureStore, FeatureWriter, FrameFeatures, StoreHeader

PICTURE = Path("frames") / "IMG_0000000105.bmp"
FILES = (
    Path("meta.json"),
    PICTURE,
    Path("annotations") / "IMG_0000000100.bmp",
    Path("object_annotations") / "te.json",
    Path("affordance_annotations") / "aff_annotations.pkl",
    Path("ground_truth") / "instances.json",
    Path("ground_truth") / "frames" / "IMG_0000000105.npz",
    Path("hand_obj_detections.json"),
    *(Path("features") / "image" / name for name in ("header.json", "table.npy", "offsets.npy", "index.npy")),
)
LEGITIMATE: dict[str, tuple[str, ...]] = {
    # A key that stands in the right place with another value of its kind; what is optional may be absent.
    "meta.json": ("half", "negative", "large", "reversed", "nothing", "null", "cut", "a list", "a dictionary", "bit "),
    # Colours have no check sum in a BMP.
    ".bmp": ("bit ", "missing", "a link to", "zeros"),
    "te.json": (
        "half",
        "reversed",
        "nothing",
        "null",
        "cut",
        "doubled",
        "a text",
        "a list",
        "a dictionary",
        "bit ",
        "missing",
        "a link to",
        "negative",
        "a folder",
    ),
    "aff_annotations.pkl": ("bit ", "missing", "a link to", "a folder"),
    "instances.json": (
        "a text",
        "nothing",
        "null",
        "reversed",
        "cut",
        "a list",
        "half",
        "bit ",
        "a dictionary",
        "truth",
        "large",
        "negative",
        "huge",
    ),
    ".npz": ("bit ", "instance largest", "depth largest"),
    "hand_obj_detections.json": (
        "nothing",
        "doubled",
        "null",
        "cut",
        "reversed",
        "half",
        "a list",
        "bit ",
        "another document",
        "a text",
        "negative",
    ),
    "header.json": (
        "a text",
        "nothing",
        "null",
        "bit ",
        "half",
        "a list",
        "a dictionary",
        "cut",
        "doubled",
        "reversed",
        "negative",
        "large",
        "truth",
    ),
    # Directions in the table are as good as others; which row a place has, nobody knows better.
    "table.npy": ("bit ", "reversed"),
    "index.npy": ("bit ", "reversed", "as bytes", "all largest", "one largest"),
    "offsets.npy": ("bit ",),
}


def write_all(root: Path) -> Path:
    """A tiny scene with everything in it, and a feature store."""
    write_tiny_scene(root)
    shutil.rmtree(root / "high_res_video")
    boxes = [
        {"frame_number": f"{n:010d}", "left_hand": [1, 2, 9, 8], "right_hand": None, "objects": [[2, 2, 20, 9]]}
        for n in (100, 105)
    ]
    (root / "hand_obj_detections.json").write_text(json.dumps(boxes))
    scene = load_scene(root)
    random = np.random.default_rng(0)
    header = StoreHeader(
        "image", "segments", "none", "0" * 64, 6, scene.frame_ids.tolist(), [scene.height, scene.width]
    )
    with FeatureWriter(root / "features" / "image", header) as writer:
        for _ in range(len(scene)):
            table = random.normal(size=(4, 6))
            index = random.integers(0, 4, (scene.height // 2, scene.width // 2)).astype(np.uint16)
            writer.append(FrameFeatures(index, table / np.linalg.norm(table, axis=1, keepdims=True)))
        writer.finish()
    return root


def digest(*values: Any) -> str:
    """Changes when any of the values does."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            found.update(f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()


def read_geometry(scene: SceneFolder) -> str:
    return digest(
        *(scene.frame_ids, scene.camera_to_worlds, scene.nears, scene.fars, scene.intrinsics, scene.times()),
        *([path.name for path in scene.image_paths], scene.video_numbers, np.asarray(scene.frames)),
        *(scene.splits[split] for split in ("train", "val", "test")),
    )


def read_masks(scene: SceneFolder) -> str:
    check_annotations(scene)
    found = [object_annotations(scene), affordance_annotations(scene)]
    labelled = [part for each in found if each for part in (each.names, *each.masks, *each.masks.values())]
    return digest(moving_mask(scene, 0), *labelled)


def read_truth(scene: SceneFolder) -> str:
    truth = ground_truth(scene)
    assert truth is not None
    return digest(truth.instance_table, truth.layers(1), truth.layers_ever(1), truth.instances(1), truth.depth(1))


def read_store(root: Path) -> str:
    store = FeatureStore.open(root / "features" / "image")
    return digest(asdict(store.header), *(part for i in range(len(store)) for part in store.frame_features(i)))


def reader_of(file: Path, root: Path, scene: SceneFolder) -> Callable[[], str]:
    """What reads a file of the folder, and nothing else: the scene is opened again only where that is at stake."""
    if file.parts[0] in ("meta.json", "frames"):
        return lambda: read_geometry(load_scene(root))
    if file.parts[0] == "ground_truth":
        return lambda: read_truth(scene)
    if file.parts[0] == "features":
        return lambda: read_store(root)
    if file.name == "hand_obj_detections.json":
        return lambda: digest(read_detections(root / file, (24, 16)))
    return lambda: read_masks(scene)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_damage_ends_in_a_sentence_or_is_legitimate(tmp_path: Path, file: Path) -> None:
    root = write_all(tmp_path / "tiny")
    scene = load_scene(root)
    read, whole = reader_of(file, root, scene), (root / file).read_bytes()
    expected, path = read(), root / file
    allowed = LEGITIMATE.get(file.name, LEGITIMATE.get(file.suffix, ()))
    faults, refused = [], 0
    mutations = mutations_of(path, seed=len(whole))
    for mutation in mutations:
        mutation.apply(path)
        try:
            found = outcome(read)
        except AssertionError as error:
            faults.append(f"{mutation.name}: {error}")
        else:
            refused += isinstance(found, DivffError)
            if not isinstance(found, DivffError) and found != expected and not mutation.name.startswith(allowed):
                faults.append(f"{mutation.name}: accepted")
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
    assert not faults, f"{len(faults)} of {len(mutations)}: " + "; ".join(faults[:20])
    assert refused > len(mutations) / 3
    assert read() == expected


def test_pickles_of_the_right_form_and_the_wrong_content(tmp_path: Path) -> None:
    root = write_all(tmp_path / "tiny")
    scene = load_scene(root)
    path = root / "affordance_annotations" / "aff_annotations.pkl"
    good = pickle.loads(path.read_bytes())
    mask = next(iter(good["images"].values()))
    for changed in (
        mask.astype(np.float32) * 3 - 1,
        mask.transpose(1, 0, 2),
        mask[:1, :1],
        mask[..., :1],
        mask.astype(object),
        np.full(mask.shape, np.nan),
        mask.astype("U5"),
        mask.astype(complex),
    ):
        path.write_bytes(pickle.dumps({**good, "images": dict.fromkeys(good["images"], changed)}))
        assert isinstance(outcome(lambda: read_masks(scene)), DivffError)
