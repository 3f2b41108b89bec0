"""Scenes of few frames, few pixels and no variety: each method trains on them, and what looks at runs takes them."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
from conftest import tiny_poses
from PIL import Image

from divff_nerfstudio.cli.evaluate import EvaluateConfig
from divff_nerfstudio.cli.video import VideoConfig
from divff_nerfstudio.data.frames import SceneError
from divff_nerfstudio.evaluation.options import EvaluationError
from divff_nerfstudio.evaluation.videos import write_video
from divff_nerfstudio.models.separation import structural_loss

METHODS = {"divff": tiny_run.config, "divff-paper": tiny_run.published_config, "divff-splat": tiny_run.splat_config}
SCENES = {
    "three frames": {"train": 1},
    "a row": {"size": (1, 16)},
    "a column": {"size": (16, 1)},
    "a pixel in one frame": {"train": 1, "size": (1, 1)},
    "black, from one place, with no depth": {"black": True, "depths": (1.0, 1.000001), "still": True},
}
LARGE_IDS = {
    "from a billion on": {"first": 10**9, "step": 33},
    "microseconds of the second hour": {"first": 3_600_000_000, "step": 33_333},
}


def write_small_scene(
    root: Path,
    train: int = 3,
    size: tuple[int, int] = (16, 24),
    black: bool = False,
    depths: tuple[float, float] = (0.5, 3.0),
    still: bool = False,
    first: int = 0,
    step: int = 1,
) -> Path:
    """A scene of some training frames of a height and width, one to validate and one to test."""
    (height, width), random = size, np.random.default_rng(0)
    ids = [first + step * i for i in range(train + 2)]
    poses = tiny_poses(len(ids))
    poses = poses[:1].repeat(len(ids), 0) if still else poses
    meta = {
        "ids_all": ids,
        "ids_train": ids[2:],
        "ids_val": ids[:1],
        "ids_test": ids[1:2],
        "images": {str(i): f"IMG_{n:010d}.bmp" for n, i in enumerate(ids)},
        "poses": {str(i): pose.tolist() for i, pose in zip(ids, poses, strict=True)},
        "nears": {str(i): depths[0] for i in ids},
        "fars": {str(i): depths[1] for i in ids},
        "intrinsics": [[20.0, 0.0, width / 2], [0.0, 21.0, height / 2], [0.0, 0.0, 1.0]],
    }
    (root / "frames").mkdir(parents=True)
    (root / "meta.json").write_text(json.dumps(meta))
    for name in meta["images"].values():
        picture = random.integers(0, 1 if black else 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / "frames" / name)
    return root


@pytest.mark.parametrize(
    ("method", "scene"),
    [*product(METHODS, SCENES), *product(("divff", "divff-splat"), LARGE_IDS)],
)
def test_small_scenes_train_and_are_looked_at(tmp_path, method, scene):
    shape = (SCENES | LARGE_IDS)[scene]
    config = METHODS[method](write_small_scene(tmp_path / "scene", **shape), tmp_path / "out")
    config.steps_per_eval_batch, config.steps_per_eval_image = 3, 5
    torch.manual_seed(0)
    config.save_config()
    trainer = tiny_run.trainer_of(config)
    trainer.setup()
    trainer.train()
    scores = trainer.pipeline.get_average_eval_image_metrics(step=99)
    assert all(np.isfinite(value) for value in scores.values()) and "psnr" in scores
    for name, value in tiny_run.parameters(trainer.pipeline.model).items():
        assert value.isfinite().all(), name
    run = config.get_base_dir() / "config.yml"
    evaluation = EvaluateConfig(load_config=run, output=tmp_path / "evaluation", moments=2).main()
    assert evaluation is not None and np.isfinite(evaluation.totals["psnr"])
    video = VideoConfig(load_config=run, output=tmp_path / "video.mp4", layout="prediction").main()
    assert video.stat().st_size > 0


@pytest.mark.parametrize("ids", LARGE_IDS)
def test_the_published_table_of_times_has_no_row_for_large_ids(tmp_path, ids):
    """One sentence, before anything is trained."""
    config = tiny_run.published_config(write_small_scene(tmp_path / "scene", **LARGE_IDS[ids]), tmp_path / "out")
    with pytest.raises(SceneError, match="no row among 1000 time rows: number the frames anew, from 0 on"):
        tiny_run.trainer_of(config).setup()


@pytest.mark.parametrize("method", METHODS)
def test_ids_that_are_no_frames_numbers_are_one_sentence(tmp_path, method):
    scene = write_small_scene(tmp_path / "scene", first=1_700_000_000_000_000, step=33_333)  # microseconds since 1970
    with pytest.raises(SceneError, match=r"meta\.json .*ids_all\.0: should be less than 1000000000000"):
        METHODS[method](scene, tmp_path / "out").setup(local_rank=0, world_size=1).setup()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 16), (16, 1), (2, 2), (3, 16)])
def test_structural_loss_of_few_pixels_is_none_for_equal_pictures(height, width):
    target = torch.rand(height * width, 3, generator=torch.Generator().manual_seed(0))
    other = (1 - target).requires_grad_()
    assert float(structural_loss(target, target, height, width)) == pytest.approx(0, abs=1e-5)
    loss = structural_loss(other, target, height, width)
    loss.backward()
    assert float(loss.detach()) > 0.01 and other.grad is not None and other.grad.abs().sum() > 0


def test_a_video_wider_than_h264_takes_is_one_sentence(tmp_path):
    with pytest.raises(EvaluationError, match="16384 pixels at most: lower --cell-height"):
        write_video(tmp_path / "wide.mp4", [np.zeros((2, 16386, 3), np.uint8)])
    assert not list(tmp_path.iterdir())
