"""Trains a scene's geometry with different priors on its layers, and compares what they do; prints JSON and a table.

python scripts/compare_priors.py --data SCENE --steps 1000 --output compare.json
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from nerfstudio.utils.rich_utils import CONSOLE

from divff_nerfstudio.atomic import atomic_path

PUBLISHED: dict[str, Any] = {
    "model.moving_start_step": 1,
    "model.mask_weight": 0.0,
    "model.persistence_weight": 0.0,
    "model.fields.max_uncertainty": 10.0,
    "model.fields.shadow": False,
    "model.fields.permanence": False,
    "model.evidence": "off",
}
"""The published priors alone: uncertainty without bound, and a penalty on the moving layers' mean density."""
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "published priors only": PUBLISHED,
    "unbounded uncertainty": {"model.fields.max_uncertainty": 10.0},
    "without static first": {"model.moving_start_step": 1},
    "without mask cost": {"model.mask_weight": 0.0},
    "without persistence": {"model.persistence_weight": 0.0},
    "without permanence": {"model.fields.permanence": False},
    "without evidence": {"model.evidence": "off"},
    "without shadow": {"model.fields.shadow": False},
}
SCORES = ("psnr", "psnr_static_room", "moving_ap", "moving_ap_ever", "actor_ap", "dynamic_ap", "dynamic_ap_ever")


@dataclass
class ComparePriors:
    """Trains the method divff once per variant, from the same seed, and evaluates on the held-out frames."""

    data: Path
    """A scene folder with ground truth."""
    output: Path
    """Where the JSON goes."""
    steps: int = 1000
    """Training steps of each variant."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which ones."""
    seed: int = 0
    """Seed of each run."""

    def main(self) -> None:
        """Runs the variants one after the other."""
        results = {}
        for name in self.variants:
            results[name] = scores_of(self.data, self.steps, self.seed, VARIANTS[name])
            with atomic_path(self.output) as temporary:
                temporary.write_text(json.dumps({"steps": self.steps, "results": results}, indent=2))
        CONSOLE.print("| priors | " + " | ".join(SCORES) + " | CPU-seconds |")
        CONSOLE.print("|---" * (len(SCORES) + 2) + "|")
        for name, scores in results.items():
            numbers = [f"{scores[key]:.2f}" if key in scores else "-" for key in (*SCORES, "cpu_seconds")]
            CONSOLE.print(f"| {name} | " + " | ".join(numbers) + " |")


def scores_of(
    data: Path,
    steps: int,
    seed: int,
    overrides: dict[str, Any],
    features: Literal["all", "auto", "none"] = "none",
    wanted: tuple[str, ...] = SCORES,
) -> dict[str, float]:
    """Trains the method divff on a scene and evaluates it on the held-out frames.

    Args:
        data: The scene's folder.
        steps: Training steps.
        seed: Of the training.
        overrides: Values of the pipeline's options by dotted name.
        features: As the option of the data manager.
        wanted: Names of scores.

    Returns:
        Those of them that there are, and "cpu_seconds" of the training.
    """
    from nerfstudio.engine.trainer import writer

    from divff_nerfstudio.registry import divff
    from divff_nerfstudio.trainer import DivFFTrainerConfig

    config = copy.deepcopy(divff.config)
    assert isinstance(config, DivFFTrainerConfig)
    config.max_num_iterations = steps
    config.vis = "tensorboard"
    config.steps_per_eval_image = config.steps_per_eval_batch = config.steps_per_save = 10 * steps
    config.pipeline.datamanager.data = data
    config.pipeline.datamanager.features = features
    for path, value in overrides.items():
        *parents, last = path.split(".")
        target: Any = config.pipeline
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, last, value)
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir, config.timestamp = Path(folder), "compared"
        config.settle()
        torch.manual_seed(seed)
        trainer = config.setup()
        trainer.setup(test_mode="test")
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
        scores = trainer.pipeline.get_average_eval_image_metrics()
        writer.EVENT_WRITERS.clear()
        writer.EVENT_STORAGE.clear()
    return {key: scores[key] for key in wanted if key in scores} | {"cpu_seconds": seconds}


if __name__ == "__main__":
    tyro.cli(ComparePriors).main()
