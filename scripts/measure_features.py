"""Measures a scene's 2D features by themselves, with no field: what they answer, how whole the segments are, how fast.

Usage: ``python scripts/measure_features.py --data SCENE [--features FOLDER]``, after ``divff extract``. Prints one JSON
object: scores of objects (image features) and affordances (video features) over the annotated frames, where the scene
has annotations; the mean of the best IoU of any segment with each visible movable object, where it has ground truth;
and the milliseconds that fetching features of 4096 random rays takes.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from nerfstudio.utils.rich_utils import CONSOLE

from divff_nerfstudio.data.annotations import (
    LabelledMasks,
    affordance_annotations,
    ground_truth,
    object_annotations,
    resize_nearest,
)
from divff_nerfstudio.data.scene import SceneFolder, load_scene
from divff_nerfstudio.evaluation.classes import ClassScores
from divff_nerfstudio.evaluation.metrics import AFFORDANCE_THRESHOLD, OBJECT_THRESHOLD
from divff_nerfstudio.features.outlines import OutlineSegmenterConfig
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.segments import ColourSegmenterConfig
from divff_nerfstudio.features.store import FeatureStore, store_root
from divff_nerfstudio.features.text import text_encoder
from divff_nerfstudio.relevancy import relevancy

RAYS = 4096
SEGMENTERS = {"outlines": OutlineSegmenterConfig, "colour": ColourSegmenterConfig}


@dataclass
class MeasureConfig:
    """Measures a scene's features."""

    data: Path
    """Folder of the scene."""
    features: Path | None = None
    """Folder of its feature stores; None: where `divff extract` puts them."""
    video_dir: Path | None = None
    """Folder of the video's frames, if it is not SCENE/high_res_video."""
    segmenter: Literal["outlines", "colour"] = "outlines"
    """The segmenter that is measured against the ground truth."""
    every: int = 8
    """The segmenter is measured on every so many-th frame."""
    smallest: float = 0.0012
    """Objects that take less than this share of a picture do not count as visible."""

    def main(self) -> None:
        """Measures and prints."""
        scene = load_scene(self.data, video_dir=self.video_dir)
        root = store_root(scene, self.features)
        result: dict[str, Any] = {}
        for kind, annotated, threshold in (
            ("image", object_annotations(scene), OBJECT_THRESHOLD),
            ("video", affordance_annotations(scene), AFFORDANCE_THRESHOLD),
        ):
            if annotated is not None and (root / kind).is_dir():
                result[kind] = answers(scene, FeatureStore.open(root / kind), annotated, threshold)
        result["lookup_ms"] = {path.name: milliseconds(FeatureStore.open(path)) for path in sorted(root.glob("[a-z]*"))}
        if ground_truth(scene) is not None:
            result["segments"] = self.segments(scene)
        CONSOLE.print_json(json.dumps(result))

    def segments(self, scene: SceneFolder) -> dict[str, Any]:
        """How whole the segments are: the best IoU of any segment with each visible movable object."""
        truth = ground_truth(scene)
        assert truth is not None
        pictures, segmenter = Pictures(scene), SEGMENTERS[self.segmenter]().setup()
        names = {
            entry["id"]: entry["name"] for entry in truth.instance_table if entry["movable"] and entry["layer"] < 2
        }
        best: dict[str, list[float]] = {}
        counts, seconds = [], []
        for frame in range(self.every // 2, len(scene), self.every):
            picture = pictures.sharpest(frame)
            start = time.process_time()
            segments = segmenter.segment(picture)
            seconds.append(time.process_time() - start)
            counts.append(int(segments.max()) + 1)
            instances = resize_nearest(truth.instances(frame), *segments.shape)
            areas = np.bincount(segments.ravel())
            for number, name in names.items():
                mask = instances == number
                if mask.sum() >= self.smallest * mask.size:
                    shared = np.bincount(segments[mask], minlength=len(areas))
                    best.setdefault(name, []).append(float((shared / (areas + mask.sum() - shared)).max()))
        every = [iou for found in best.values() for iou in found]
        return {
            "mean_best_iou": float(np.mean(every)),
            "share_above_half": float(np.mean(np.array(every) > 0.5)),
            "segments_per_frame": float(np.mean(counts)),
            "cpu_seconds_per_frame": float(np.mean(seconds)),
            "by_object": {name: float(np.mean(found)) for name, found in best.items()},
        }


@torch.inference_mode()
def answers(scene: SceneFolder, store: FeatureStore, annotated: LabelledMasks, threshold: float) -> dict[str, Any]:
    """Scores of the relevancy of each class's name, with the store's features in place of rendered ones."""
    entry = store.header.text_encoder
    if entry is None:
        return {}
    encode = text_encoder(entry)
    positives, negatives = encode(annotated.names), encode(store.header.negatives)
    scores = ClassScores(annotated.names, threshold)
    row, column = (torch.from_numpy(grid.ravel()) for grid in np.mgrid[: scene.height, : scene.width])
    for frame, masks in annotated.masks.items():
        features, valid = store.lookup(torch.full_like(row, frame), row, column)
        found = relevancy(store.decode(features), positives, negatives) * valid[:, None]
        scores.add(found.reshape(scene.height, scene.width, -1).numpy(), masks)
    return {"mean": scores.totals(), "classes": scores.per_class()}


def milliseconds(store: FeatureStore, repeats: int = 20) -> float:
    """Median time of a look-up of random rays."""
    random = np.random.default_rng(0)
    limits = (len(store), *store.header.image_size)
    taken = []
    for _ in range(repeats):
        rays = [torch.from_numpy(random.integers(0, limit, RAYS)) for limit in limits]
        start = time.perf_counter()
        store.lookup(*rays)
        taken.append(time.perf_counter() - start)
    return float(1000 * np.median(taken))


if __name__ == "__main__":
    tyro.cli(MeasureConfig).main()
