"""Options of the baselines with models of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Optional

from pydantic import Field

from divff_nerfstudio.schema import Share, Words


@dataclass(frozen=True)
class SamWeights:
    """SAM 2.1, which turns boxes into masks."""

    weights: Words = "large"
    """Size of SAM 2.1 (tiny, small, base-plus, large), another model's name on the Hugging Face hub, or a folder with
    config.json and model.safetensors."""


@dataclass(frozen=True)
class BaselineModels:
    """Which weights the baselines use, where each is asked for."""

    owl: Words = "google/owlv2-base-patch16-ensemble"
    """OWL-ViT or OWLv2 of the baselines owl and owl-real: a name on the Hugging Face hub, or a folder with the model's
    files."""
    owl_threshold: Share = 0.1
    """Detection score from which a box counts as found."""
    owl_prompt: Words = "a photo of a {}"
    """What OWL is asked for an object; actions are asked as they are."""
    sam: SamWeights = field(default_factory=SamWeights)
    """SAM 2.1, which turns boxes into masks."""
    ooal: Optional[Path] = None  # noqa: UP045
    """OOAL's weights; by default those that `divff download` has fetched, else seen_best in the user's folder of
    weights (~/.cache/divff/weights)."""
    ooal_clip: Words = "ViT-B-16/openai"
    """CLIP with the tokens of names that OOAL was not trained on: MODEL/TAG or MODEL/FILE of open_clip."""
    clip_shares: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.15, 0.3, 0.5)
    """Sides of the crops of the baseline lerf, as shares of the picture's height."""
