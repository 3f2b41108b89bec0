"""divff-paper as its users run it: train, evaluate, render, on a scene that is tiny."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import small_scene
import tiny_run
import torch
from test_end_to_end import Run, read_pictures

from divff_nerfstudio.evaluation.runs import our_configs
from divff_nerfstudio.run_config import read_config

STEPS = 26
RENDERED = ("rgb", "rgb_static", "depth", "mask_moving", "features_pca", "relevancy", "relevancy_overlay")
SIZES = {
    "fields.trunk-width": "64",
    "fields.branch-width": "16",
    "heads.hidden": "16",
    "heads.samples": "4",
    "coarse-samples": "12",
    "importance-samples": "8",
}


@pytest.mark.slow
def test_train_evaluate_and_render(tmp_path: Path):
    env = {**os.environ, "DIVFF_CACHE_DIR": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    scene = small_scene.write(tmp_path / "scene")
    tiny_run.write_features(scene, tmp_path / "encoder")
    options = {
        "--data": scene,
        "--output-dir": tmp_path / "outputs",
        "--experiment-name": "tiny",
        "--timestamp": "run",
        "--vis": "tensorboard",
        "--max-num-iterations": STEPS,
        "--machine.device-type": "cpu",
        "--pipeline.datamanager.train-num-rays-per-batch": 64,
        "--pipeline.query.text": "mug",
        **{f"--pipeline.model.{name}": value for name, value in SIZES.items()},
    }
    run = Run(tmp_path, env, "divff-paper")
    run.command("ns-train", "divff-paper", *(word for pair in options.items() for word in pair))
    read_config(run.config, our_configs())
    text = run.config.read_text()
    assert "steps_per_epoch: 2.0" in text and "pixel_centres: false" in text and "time_rows: 1000" in text
    checkpoint = run.config.parent / "nerfstudio_models" / f"step-{STEPS - 1:09d}.ckpt"
    names = torch.load(checkpoint, weights_only=True)["pipeline"]
    assert {"_model.field.embedding_t.W", "_model.semantic.person_video.dino_net.2.bias"} <= names.keys()
    with run.pool:
        run.start("scores.json", "ns-eval")
        run.start("dataset", "ns-render", "dataset", "--image-format", "png", "--rendered-output-names", *RENDERED)
    scores = json.loads(run.output("scores.json").read_text())["results"]
    assert {"psnr", "moving_ap", "object_miou", "affordance_miou"} <= scores.keys()
    assert all(np.isfinite(value) for value in scores.values())
    for name in RENDERED:
        pictures = read_pictures(run.output("dataset") / "test" / name)
        assert len(pictures) == len(small_scene.TEST), name
        assert all(picture.shape[:2] == (small_scene.HEIGHT, small_scene.WIDTH) for picture in pictures)
