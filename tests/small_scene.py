"""A tiny scene on disk with every kind of annotation, and a model that renders it from what it knows."""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader
from PIL import Image

from divff_nerfstudio.data.epic_diff import EpicDiffDataParserConfig
from divff_nerfstudio.datamanager import SceneDataset
from divff_nerfstudio.fields.layers import LAYERS
from divff_nerfstudio.models.view import EVERYTHING, FEATURES, Features, RenderedView
from divff_nerfstudio.query import Query, QueryConfig

HEIGHT, WIDTH, FRAMES = 24, 40, 12
TEST, VAL = (4, 8), (2,)
OBJECTS = ("mug", "bowl", "never shown")
ACTIONS = ("take the mug",)
DIMENSION = 6
INSTANCES = [
    {"id": 0, "name": "unlabelled", "description": "unlabelled", "layer": 0, "motion": []},
    {"id": 1, "name": "mug", "description": "a red mug", "layer": 1, "motion": [[0, 110]]},
    {"id": 2, "name": "arm", "description": "a human arm", "layer": 2, "motion": [[0, 110]]},
    {"id": 3, "name": "bowl", "description": "a bowl", "layer": 0, "motion": []},
]


def layers(frame: int) -> np.ndarray:
    """An actor from the left, an object that moves to the right by two pixels a frame, and room."""
    layer = np.zeros((HEIGHT, WIDTH), np.uint8)
    layer[8:14, 10 + 2 * frame : 16 + 2 * frame] = 1
    layer[16:, : 8 + frame] = 2
    return layer


def room() -> np.ndarray:
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([rows * 5, cols * 4, (rows + cols) * 2], axis=-1).astype(np.uint8)


def picture(frame: int) -> np.ndarray:
    image, layer = room(), layers(frame)
    image[layer == 1], image[layer == 2] = (220, 40, 40), (200, 160, 130)
    return image


def object_masks(frame: int) -> np.ndarray:
    """The mug is what moves; the bowl stands in a corner of test frame 4 only."""
    masks = np.zeros((HEIGHT, WIDTH, len(OBJECTS)), bool)
    masks[..., 0] = layers(frame) == 1
    if frame == TEST[0]:
        masks[:5, :6, 1] = True
    return masks


def write(root: Path) -> Path:
    """Writes the scene in the layout of EPIC-Diff, with ground truth."""
    for folder in ("frames", "annotations", "affordance_annotations", "ground_truth/frames", "ground_truth/background"):
        (root / folder).mkdir(parents=True)
    names = [f"IMG_{10 * i:010d}.bmp" for i in range(FRAMES)]
    pose = np.eye(4)[:3]
    for i, name in enumerate(names):
        Image.fromarray(picture(i)).save(root / "frames" / name)
        layer = layers(i)
        np.savez(
            root / "ground_truth" / "frames" / name.replace("bmp", "npz"),
            layer=layer,
            layer_ever=layer,
            instance=np.where(object_masks(i)[..., 1], 3, layer),
            depth=np.ones((HEIGHT, WIDTH), np.float32),
        )
        if i in TEST:
            Image.fromarray((layer > 0).astype(np.uint8)).save(root / "annotations" / name)
            Image.fromarray(room()).save(root / "ground_truth" / "background" / name.replace("bmp", "png"))
    (root / "ground_truth" / "instances.json").write_text(json.dumps({"instances": INSTANCES}))
    for i in TEST:
        for c, label in enumerate(OBJECTS):
            folder = root / "object_annotations" / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(object_masks(i)[..., c].astype(np.uint8)).save(folder / names[i].replace("bmp", "png"))
    actions = {"text_queries": [f"#C C {ACTIONS[0]}"], "images": {names[i]: object_masks(i)[..., :1] for i in TEST}}
    (root / "affordance_annotations" / "aff_annotations.pkl").write_bytes(pickle.dumps(actions))
    meta = {
        "ids_all": list(range(FRAMES)),
        "ids_train": [i for i in range(FRAMES) if i not in TEST + VAL],
        "ids_val": list(VAL),
        "ids_test": list(TEST),
        "images": {str(i): name for i, name in enumerate(names)},
        "poses": {str(i): (pose + np.eye(4)[:3, 3:] * 0).tolist() for i in range(FRAMES)},
        "nears": {str(i): 0.1 for i in range(FRAMES)},
        "fars": {str(i): 5.0 for i in range(FRAMES)},
        "intrinsics": [[30.0, 0, WIDTH / 2], [0, 30.0, HEIGHT / 2], [0, 0, 1]],
        "image_w": WIDTH,
        "image_h": HEIGHT,
    }
    for i in range(FRAMES):
        meta["poses"][str(i)][0][3] = 0.01 * i
    (root / "meta.json").write_text(json.dumps(meta))
    return root


def datamanager(root: Path, split: str = "test", **options: Any) -> SimpleNamespace:
    """What evaluation uses of the data manager, from the real dataparser, with its options, and dataset."""
    parser = EpicDiffDataParserConfig(data=root, **options).setup()
    train = SceneDataset(parser.get_dataparser_outputs("train"))
    evaluated = SceneDataset(parser.get_dataparser_outputs(split))
    return SimpleNamespace(
        dataparser=parser,
        device=torch.device("cpu"),
        train_dataset=train,
        eval_dataset=evaluated,
        fixed_indices_eval_dataloader=FixedIndicesEvalDataloader(evaluated, device=torch.device("cpu")),
    )


CODES = {
    word: torch.eye(DIMENSION)[i]
    for words in (
        {"mug": 0, "take the mug": 0, "bowl": 1, "never shown": 2},
        {"object": 3, "things": 4, "stuff": 5, "hands": 5},
        {"general task": 3, "undistic movement": 4, "unclear action": 5, "background": 5},
    )
    for word, i in words.items()
}


def make_query(**options) -> Query:
    def encode(phrases):
        return torch.stack([CODES[phrase] for phrase in phrases])

    return Query(QueryConfig(**options), {"image": encode, "video": encode})


def only(view: RenderedView, outputs: Collection[str]) -> RenderedView:
    """What was asked for of a view."""
    pictures = {name: picture for name, picture in view.pictures.items() if name in outputs}
    return RenderedView(view.camera, pictures, view.features if FEATURES in outputs else Features())


class KnowingModel:
    """Renders the scene as it is: colours are off by `error`, masks and features are exact. Notes what is asked for."""

    def __init__(self, error: float = 0.1):
        self.error = error
        self.seen, self.asked_for = [], []

    @staticmethod
    def frame(camera) -> int:
        return round(float(camera.times.reshape(-1)[0]) * (FRAMES - 1))

    def render(self, camera, layers=LAYERS, box=None, outputs=EVERYTHING) -> RenderedView:
        self.asked_for.append({*outputs})
        features = self.features(camera)
        view = RenderedView(camera, self.pictures(camera, layers), Features(tuple(features), features.get))
        return only(view, outputs)

    def pictures(self, camera, shown=LAYERS) -> dict[str, torch.Tensor]:
        frame = self.frame(camera)
        self.seen.append((frame, "actor" not in shown, float(camera.camera_to_worlds.reshape(3, 4)[0, 3])))
        layer, target = torch.from_numpy(layers(frame))[..., None], torch.from_numpy(picture(frame)) / 255.0
        parts = {name: target * (layer == value) for name, value in (("rgb_dynamic", 1), ("rgb_actor", 2))}
        masks = {name: (layer == value).float() for name, value in (("mask_dynamic", 1), ("mask_actor", 2))}
        return {
            "rgb": (target + self.error * torch.where(target > 0.5, -1, 1)).clamp(0, 1),
            "depth": torch.ones(HEIGHT, WIDTH, 1),
            "accumulation": torch.ones(HEIGHT, WIDTH, 1),
            "rgb_static": torch.from_numpy(room()) / 255.0,
            **parts,
            **masks,
            "mask_moving": (layer > 0).float(),
            "uncertainty": torch.rand(HEIGHT, WIDTH, 1),
        }

    def features(self, camera) -> dict[str, torch.Tensor]:
        frame = self.frame(camera)
        masks = object_masks(frame)
        codes = torch.full((HEIGHT, WIDTH, DIMENSION), 0.0)
        codes[..., 3] = 1.0
        for c, label in enumerate(OBJECTS):
            codes[torch.from_numpy(masks[..., c])] = CODES[label]
        return {"image": codes, "video": codes}
