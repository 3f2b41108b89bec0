"""How usable the answers of a trained scene with ground truth are, as JSON.

    python scripts/measure_answers.py RUN/config.yml
    python scripts/measure_answers.py --scene SCENE --features FOLDER

The second line needs no training: the true depth, and the true layers, stand in for the model's, and each frame's own
stored features for rendered ones, so that it measures the grouping and the calibration alone. Nothing of the ground
truth is given to what finds the answers in the first; in the second, depth and layers alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from divff_nerfstudio.calibration import Calibration, calibration
from divff_nerfstudio.data.annotations import ground_truth, resize_nearest
from divff_nerfstudio.data.moved_objects import moved_objects
from divff_nerfstudio.data.scene import SceneFolder, load_scene
from divff_nerfstudio.evaluation.answers import THRESHOLDS
from divff_nerfstudio.evaluation.classes import ClassScores
from divff_nerfstudio.evaluation.door import open_run
from divff_nerfstudio.evaluation.found_things import overlaps, score_things
from divff_nerfstudio.evaluation.looks import features_of, look_cameras, look_of, look_size, ray_directions
from divff_nerfstudio.evaluation.naming import name_things
from divff_nerfstudio.evaluation.places import MIN_PIXELS, Places
from divff_nerfstudio.evaluation.trained_scene import TrainedScene
from divff_nerfstudio.features.oracle import canonical
from divff_nerfstudio.features.store.reader import FeatureStore
from divff_nerfstudio.features.text import text_encoder
from divff_nerfstudio.objects.diary import diary
from divff_nerfstudio.objects.recognition import Recognition
from divff_nerfstudio.objects.things import Things, find_things
from divff_nerfstudio.query import QueryConfig, build_query

PHRASES = 60
"""So many are asked, half of them of what the scene has."""
ABSENT = (
    "teapot", "whisk", "rolling pin", "towel", "apple", "lemon", "sponge", "milk carton", "jar", "tin can", "kettle",
    "wooden spoon", "drinking glass", "dinner plate", "salad bowl", "cooking pot", "elephant", "motorbike", "violin",
    "sailing boat", "dinosaur", "rocket", "umbrella", "bicycle", "laptop", "dog", "toothbrush", "guitar", "shoe",
    "skis", "microphone", "a globe", "chess board", "wheelbarrow", "banana", "carrot", "frying pan", "colander",
    "cutting board", "red jar", "green teapot", "tractor", "typewriter", "cactus", "crown", "parrot",
)  # fmt: skip
"""Phrases for what a kitchen may have and for what none has; those that the scene has are not asked as absent."""
KIND = "image"
SAME = (
    {"counter", "worktop", "table"}, {"fridge", "refrigerator"}, {"hob", "stove"}, {"tap", "faucet", "water tap"},
    {"hood", "cooker hood"}, {"cupboard", "cupboard door", "cabinet"}, {"cupboard door", "door"},
    {"wall", "back wall", "tiles"}, {"wall", "left wall", "right wall"}, {"picture", "painting"},
    {"plant", "herbs", "leaf"}, {"bottle", "oil bottle", "wine bottle", "sauce bottle"}, {"pan", "frying pan"},
    {"mug", "cup"}, {"cereal box", "box", "cardboard box"}, {"drawer", "drawers"},
)  # fmt: skip
"""Words of which each is a right name for what the others mean in a kitchen."""


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, help="config.yml of a run")
    parser.add_argument("--data", type=Path, help="folder of its scene, if it has moved")
    parser.add_argument("--scene", type=Path, help="folder of a scene, in place of a run")
    parser.add_argument("--features", type=Path, help="folder of its stores")
    given = parser.parse_args()
    if (given.config is None) == (given.scene is None):
        parser.error("give a run's config.yml, or --scene")
    print(json.dumps(of_run(given.config, given.data) if given.config else of_scene(given.scene, given.features)))


def of_run(config: Path, data: Path | None) -> dict[str, Any]:
    """The figures of a trained run."""
    scene = open_run(config, data)
    trained, start = scene.trained, time.process_time()
    fitted = trained.calibration(KIND)
    assert fitted is not None
    things = scene.found
    figures: dict[str, Any] = {"depth": "rendered", "things_cpu_s": time.process_time() - start}

    def features(index: int) -> np.ndarray:
        view = trained.render(trained.camera_at(index, float(trained.times[index])), outputs=("features",))
        found = view.embeddings(KIND)
        assert found is not None
        return found.cpu().float().numpy()

    return figures | measured(trained.scene, fitted, things, features) | recognised(trained, things)


def recognised(trained: TrainedScene, things: Things) -> dict[str, float]:
    """How well the things are recognised in rendered views of the test frames: the share of right pixels among those
    that are given a thing, and the IoU with the instances that the things are, mean over these."""
    truth, moved = trained.truth, moved_objects(trained.scene)
    assert truth is not None and moved is not None
    shown, _ = overlaps(things, Places(trained.scene, truth, moved, range(len(trained.scene))))
    own = np.concatenate(([0], shown.argmax(axis=1)))
    counts = np.zeros((3, 256), np.int64)
    for index in (int(i) for i in trained.scene.splits["test"]):
        view = trained.render(trained.camera_at(index, float(trained.times[index])))
        features = view.embeddings(KIND)
        assert features is not None
        numbers = Recognition(things, index).numbers(view.points.numpy(), features.cpu().float().numpy())
        found, true = own[numbers], truth.instances(index)
        for row, part in enumerate((found[found == true], found, true)):
            counts[row] += np.bincount(part.ravel(), minlength=256)
    counts[:, 0] = 0
    asked = [instance for instance in np.unique(own) if counts[2, instance] >= MIN_PIXELS]
    right, given, there = counts[:, asked]
    return {
        "recognised_right": float(counts[0].sum() / max(counts[1].sum(), 1)),
        "recognised_miou": float(np.mean(right / np.maximum(given + there - right, 1))),
    }


def of_scene(root: Path, folder: Path | None) -> dict[str, Any]:
    """The figures of a scene's stored features, with true depth."""
    scene = load_scene(root)
    store = FeatureStore.open((folder or root / "features") / KIND)
    truth = ground_truth(scene)
    if truth is None:
        sys.exit(f"{root} has no ground truth.")
    query = build_query(QueryConfig(), {KIND: store}, text_encoder)
    fitted = calibration(query, KIND, store)
    assert fitted is not None
    start = time.process_time()
    size, cameras = look_size(scene), look_cameras(scene, scene.intrinsics)
    looks = []
    for i, camera in enumerate(cameras):
        # Along the ray, as a model renders it; ground truth is along the optical axis.
        slant = -(ray_directions(camera, size) @ camera.pose[:, 2])
        distance = resize_nearest(truth.depth(i), *size) / slant
        layers = resize_nearest(truth.layers_ever(i), *size)
        looks.append(look_of(store, i, camera, size, distance, np.stack((layers == 2, layers == 1))))
    things = find_things(looks, partial(features_of, store), cameras)

    def features(index: int) -> np.ndarray:
        places, table = store.frame_features(index)
        places = resize_nearest(places, scene.height, scene.width)
        with torch.no_grad():
            table = store.decode(torch.from_numpy(table)).numpy()
        shown = np.concatenate((table, np.zeros((1, table.shape[1]), np.float32)))
        return shown[np.minimum(places, len(table))]

    figures = {"depth": "true", "things_cpu_s": time.process_time() - start}
    return figures | measured(scene, fitted, things, features)


def measured(scene: SceneFolder, fitted: Calibration, things: Things, features: Any) -> dict[str, Any]:
    """All figures of one scene."""
    truth, moved = ground_truth(scene), moved_objects(scene)
    if truth is None or moved is None:
        sys.exit(f"{scene.root} has no ground truth of moved objects.")
    places = Places(scene, truth, moved, range(len(scene)))
    speed = json.loads((scene.root / "ground_truth" / "instances.json").read_text()).get("frames_per_second", 20.0)
    figures: dict[str, Any] = {"scene": scene.name, "things": len(things.things)}
    figures |= thresholds(scene, fitted, places, features)
    figures |= decisions(fitted, places)
    figures |= landmark_names(things, fitted, places)
    return figures | score_things(things, places, speed)


def landmark_names(things: Things, fitted: Calibration, places: Places) -> dict[str, Any]:
    """What the diary says that things stand by: how often, how often by a name, and the share of the names that are
    those of what most pixels of the landmark show."""
    shown, _ = overlaps(things, places)
    own = shown.argmax(axis=1)
    table = {entry["id"]: entry for entry in places.truth.instance_table}
    name_things(things, fitted)
    told = [thing for event in diary(things) for thing in (event.source, event.target) if thing is not None]
    named = [(thing.name, table[own[thing.number - 1]]["name"]) for thing in told if thing.name]
    wrong = [f"{name} for {true}" for name, true in named if not means(name, true)]
    figures: dict[str, Any] = {"landmarks": len(told), "landmarks_named": len(named), "landmarks_wrong": wrong}
    return figures | ({"landmarks_named_right": 1 - len(wrong) / len(named)} if named else {})


def means(name: str, true: str) -> bool:
    """Whether a name is right for an instance of another."""
    name, true = canonical(name), canonical(true)
    return name == true or any({name, true} <= same for same in SAME)


def thresholds(scene: SceneFolder, fitted: Calibration, places: Places, features: Any) -> dict[str, float]:
    """IoU of the names of all that the test frames show, at the fitted thresholds and at the best ones."""
    table = [e for e in places.truth.instance_table if e["id"] and e.get("layer") != 2]
    test = [int(i) for i in scene.splits["test"]]
    table = [e for e in table if sum(int((places.truth.instances(i) == e["id"]).sum()) for i in test) >= 20]
    names = [entry["name"] for entry in table]
    scores = ClassScores(names, THRESHOLDS[KIND])
    for index in test:
        shown = torch.from_numpy(features(index))
        relevancies = fitted.query.relevancies(shown, KIND, names, decoded=True).float().numpy()
        masks = fitted.masks(shown, relevancies, names)
        marked = np.stack([places.truth.instances(index) == entry["id"] for entry in table], axis=-1)
        scores.add(relevancies, marked, masks=masks)
    totals = scores.totals()
    kept = {name: totals[name] for name in ("miou_sound", "miou_auto", "miou_loo", "miou_oracle", "ap")}
    return kept | {"auto_of_oracle": totals["miou_auto"] / max(totals["miou_oracle"], 1e-9)}


def decisions(fitted: Calibration, places: Places) -> dict[str, Any]:
    """Whether phrases' things are in the scene: half of the phrases are of what at least four frames show."""
    seen = (places.pixel_counts >= MIN_PIXELS).sum(axis=0)
    table = [e for e in places.truth.instance_table if e["id"]]
    named = [e for e in table if seen[e["id"]] >= 4 and e.get("layer") != 2]
    present = [e["name"] for e in named] + [e.get("description") or e["name"] for e in named]
    present = list({canonical(phrase): phrase for phrase in present}.values())[: PHRASES // 2]
    known = {canonical(text) for e in table for text in (e["name"], e.get("description") or e["name"])}
    absent = [p for p in ABSENT if not any(canonical(p) in text or text in canonical(p) for text in known)]
    absent = absent[: PHRASES // 2]
    start = time.process_time()
    there = [verdict.in_scene for verdict in fitted.verdicts(present)]
    gone = [not verdict.in_scene for verdict in fitted.verdicts(absent)]
    return {
        "phrases": len(there) + len(gone),
        "phrases_right": (sum(there) + sum(gone)) / (len(there) + len(gone)),
        "present_right": float(np.mean(there)),
        "absent_right": float(np.mean(gone)),
        "phrases_wrong": [p for p, right in zip([*present, *absent], [*there, *gone], strict=True) if not right],
        "phrases_cpu_s": time.process_time() - start,
    }


if __name__ == "__main__":
    main()
