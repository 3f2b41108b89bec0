"""What the field is held against; another one is a class derived from `Baseline`."""

from divff_nerfstudio.evaluation.baselines.base import BASELINES, Baseline, at_threshold, load_baseline

__all__ = ["BASELINES", "Baseline", "at_threshold", "load_baseline"]
