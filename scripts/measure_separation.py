"""Moved objects: trains the method divff on several scenes with and without what is meant to find them; prints a table.

python scripts/measure_separation.py --scenes DEMO0 DEMO1 KITCHEN --output separation.json

Scenes need ground truth. Where features are stored, they are distilled and their segments vote; with oracle features
(`divff extract --sources divff_nerfstudio.features.oracle:OracleObjects`) what is lost is the field's fault alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from compare_priors import scores_of
from nerfstudio.utils.rich_utils import CONSOLE

from divff_nerfstudio.atomic import atomic_path

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "weight 3": {"model.evidence_weight": 3.0},
    "six octaves": {"model.fields.actor_octaves": 6},
    "shadow of seven octaves": {"model.fields.shadow_octaves": 7},
    "shadow of eight octaves": {"model.fields.shadow_octaves": 8},
    "shadow of four octaves": {"model.fields.shadow_octaves": 4},
    "with fog": {"model.distortion_weight": 0.0},
    "fog around the head": {"model.clear_weight": 0.0},
    "not placed": {
        "model.elsewhere_share": 1.0,
        "model.resting_weight": 0.0,
        "model.left_weight": 0.0,
        "model.carried_weight": 0.0,
    },
    "carried, not pulled": {"model.carried_weight": 0.0},
    "drawn alike": {"datamanager.contested_weight": 0.0},
    "not carried": {"model.evidence": "on"},
    "neither": {"model.evidence": "off"},
    "without hints": {"model.hints": "off"},
    "two windows": {"datamanager.windows": 2},
    "four windows": {"datamanager.windows": 4},
}
"""Overrides; by default there are evidence and carried objects, and hints where those are stored (`divff extract
--sources hints`)."""
SCORES = (
    "psnr",
    "psnr_static_room",
    "moving_ap",
    "moving_ap_ever",
    "actor_ap",
    "dynamic_ap",
    "dynamic_ap_ever",
    "moved_object_ap",
    "moved_found",
    "moved_gone",
    "moved_found_and_gone",
    "moved_point_error_cm",
)


@dataclass
class MeasureSeparation:
    """Trains each variant on each scene, and evaluates on the held-out frames."""

    scenes: tuple[Path, ...]
    """Scene folders with ground truth."""
    output: Path
    """Where the JSON goes; what it holds of the same steps, seed and features is not measured again."""
    steps: int = 1600
    """Training steps."""
    seed: int = 0
    """Seed of each run."""
    features: Literal["auto", "none"] = "auto"
    """Whether stored features are distilled and vote."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which ones."""

    def main(self) -> None:
        """Runs the variants one after the other."""
        settings = {"steps": self.steps, "seed": self.seed, "features": self.features}
        known = json.loads(self.output.read_text("utf-8")) if self.output.is_file() else {}
        results = known.get("results", {}) if known.get("settings") == settings else {}
        for scene in self.scenes:
            for name in self.variants:
                if name in results.setdefault(scene.name, {}):
                    continue
                found = scores_of(scene, self.steps, self.seed, VARIANTS[name], self.features, SCORES)
                results[scene.name][name] = found
                with atomic_path(self.output) as temporary:
                    temporary.write_text(json.dumps({"settings": settings, "results": results}, indent=2), "utf-8")
        CONSOLE.print(
            "| scene | variant | " + " | ".join(f"`{key}`" for key in SCORES) + " | CPU-seconds |", soft_wrap=True
        )
        CONSOLE.print("|---" * (len(SCORES) + 3) + "|", soft_wrap=True)
        for scene, variants in results.items():
            for name, scores in variants.items():
                numbers = [f"{scores[key]:.2f}" if key in scores else "-" for key in (*SCORES, "cpu_seconds")]
                CONSOLE.print(f"| {scene} | {name} | " + " | ".join(numbers) + " |", soft_wrap=True)


if __name__ == "__main__":
    tyro.cli(MeasureSeparation).main()
