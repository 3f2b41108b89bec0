"""The answer to a phrase in one view: where, how sure, in which layer, at which point of the scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from divff_nerfstudio.calibration import Calibration, Verdict, standing
from divff_nerfstudio.evaluation.metrics import AFFORDANCE_THRESHOLD, OBJECT_THRESHOLD
from divff_nerfstudio.query import OVERLAY_OFFSET, overlay

if TYPE_CHECKING:
    from divff_nerfstudio.evaluation.trained_scene import AskedView

THRESHOLDS: Mapping[str, float] = {"image": OBJECT_THRESHOLD, "video": AFFORDANCE_THRESHOLD}
"""Relevancy above which a pixel belongs to the mask, by kind of features (DIV-FF)."""


@dataclass(frozen=True)
class Rival:
    """A common phrase that means something else, from which a phrase is told apart."""

    phrase: str
    """The common phrase."""
    area: float
    """Share of the picture that is above the asked phrase's threshold, and more like some such phrase, most of it like
    this one."""


@dataclass
class Answer:
    """What a view says to a phrase."""

    phrase: str
    """What was asked."""
    kind: str
    """Which features answered."""
    relevancy: Float[np.ndarray, "height width"]
    """Relevancy of each pixel, 0 to 1."""
    threshold: float
    """Relevancy above which a pixel belongs to the mask."""
    row: int
    """Row of the most relevant pixel, the first of several."""
    column: int
    """Its column."""
    point: tuple[float, float, float]
    """Where its ray meets the scene, in world coordinates."""
    depth: float
    """How far that is along the ray, in scene units."""
    shares: dict[str, float]
    """How much of that pixel is the static layer, the dynamic one, the actor."""
    rgb: Float[np.ndarray, "height width 3"]
    """The view, 0..1."""
    verdict: Verdict | None = None
    """What the whole scene says of the phrase, where it has been asked."""
    fitted: Bool[np.ndarray, "height width"] | None = None
    """The pixels that are the thing, by a threshold that fits the scene; None: those above `threshold`."""

    rival: Rival | None = None
    """What is above the threshold and is left out because it is more like something else; None: nothing is."""

    @property
    def score(self) -> float:
        """The largest relevancy."""
        return float(self.relevancy[self.row, self.column])

    @property
    def layer(self) -> str:
        """The layer that has the largest share of the most relevant pixel: static, dynamic or actor."""
        return max(self.shares, key=lambda layer: self.shares[layer])

    @property
    def mask(self) -> Bool[np.ndarray, "height width"]:
        """The pixels that are the thing."""
        return self.relevancy > self.threshold if self.fitted is None else self.fitted

    @property
    def state(self) -> str | None:
        """See `standing`; None where nobody knows."""
        return None if self.verdict is None else standing(self.verdict, self.mask)

    @cached_property
    def overlay(self) -> Float[np.ndarray, "height width 3"]:
        """The relevancy over the view, as the published pictures show it."""
        scores = torch.from_numpy(self.relevancy[..., None])
        return overlay(torch.from_numpy(self.rgb), scores, OVERLAY_OFFSET[self.kind]).numpy()

    def summary(self) -> dict[str, Any]:
        """The answer in numbers, as plain data: areas are shares of the picture."""
        return {
            "query": self.phrase,
            "features": self.kind,
            "score": self.score,
            "threshold": self.threshold,
            "state": self.state,
            "rival": None if self.rival is None else {"phrase": self.rival.phrase, "area": self.rival.area},
            "area": float(self.mask.mean()),
            "pixel": [self.row, self.column],
            "point": list(self.point),
            "depth": self.depth,
            "layer": self.layer,
            "shares": self.shares,
        }


def judged(answer: Answer, view: AskedView, calibration: Calibration | None) -> Answer:
    """An answer with a threshold that fits the scene, and with what the whole scene says of its phrase.

    Args:
        answer: The answer.
        view: The view that it is of.
        calibration: That of the kind of features that answered; None: the answer stays as it is.
    """
    features = view.embeddings(answer.kind)
    if calibration is None or features is None:
        return answer
    (verdict,) = calibration.verdicts([answer.phrase])
    mask = calibration.masks(features, answer.relevancy[..., None], [answer.phrase])[..., 0]
    rival, left_out = None, (answer.relevancy > verdict.threshold) & ~mask
    if left_out.any():
        more_like = calibration.rivals(features.cpu().float().numpy()[left_out], answer.phrase)
        rival = Rival(Counter(more_like).most_common(1)[0][0], float(left_out.mean()))
    if not verdict.in_scene:
        mask = np.zeros_like(mask)
    return replace(answer, threshold=verdict.threshold, verdict=verdict, fitted=mask, rival=rival)


def answer_about(
    phrase: str,
    kind: str,
    relevancy: Float[np.ndarray, "height width"],
    outputs: Mapping[str, Float[Tensor, "height width channels"]],
    points: Float[Tensor, "height width 3"],
    threshold: float | None = None,
) -> Answer:
    """Reads the answer off a relevancy map and the view's pictures.

    Args:
        phrase: What was asked.
        kind: Which features answered.
        relevancy: Relevancy of each pixel.
        outputs: The view's pictures; "rgb", "depth", "accumulation" and the layers' masks are looked at.
        points: Where each pixel's ray meets the scene.
        threshold: Relevancy above which a pixel belongs to the mask; None: DIV-FF's for that kind.
    """
    row, column = divmod(int(relevancy.argmax()), relevancy.shape[1])
    pixel = {name: float(outputs[name][row, column, 0]) for name in ("accumulation", "mask_dynamic", "mask_actor")}
    moving = pixel["mask_dynamic"] + pixel["mask_actor"]
    x, y, z = points[row, column].tolist()
    return Answer(
        phrase=phrase,
        kind=kind,
        relevancy=relevancy,
        threshold=THRESHOLDS[kind] if threshold is None else threshold,
        row=row,
        column=column,
        point=(x, y, z),
        depth=float(outputs["depth"][row, column, 0]),
        shares={
            "static": max(0.0, pixel["accumulation"] - moving),
            "dynamic": pixel["mask_dynamic"],
            "actor": pixel["mask_actor"],
        },
        rgb=outputs["rgb"].numpy(),
    )
