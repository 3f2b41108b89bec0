"""A yes or no that fits the scene: whether a phrase's thing is in it, and which pixels it is.

Relevancies have no scale of their own: with one encoder a banana in plain view has 0.6, with another a wall has 0.8. So
each phrase is held against the scene's own stored segments, and against phrases for common things, most of which no
scene has:

* **In the scene.** For each segment, the phrase's similarity is counted in spreads of the common phrases' similarities;
  the best segments of the frames that have the best ones say how sure the phrase is. How sure the common phrases are in
  this scene tells what chance can do: they fall into many that are not there and some that are.
* **Which pixels.** The threshold lies between the level of the scene's usual segment and that of the phrase's best
  ones. Where a common phrase that means something else (a *rival*) is clearly more similar, a pixel is not the thing.

No ground truth is looked at. Everything is of the kind of features that is asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from divff_nerfstudio.query import Query, QueryConfig
from divff_nerfstudio.relevancy import EXAMPLE_NAME

if TYPE_CHECKING:
    from divff_nerfstudio.features.store.reader import FeatureStore

BETWEEN = 0.6
"""Where the threshold lies between the level of the usual segment (0) and of a phrase's best ones (1)."""
BETWEEN_THINGS = 0.5
"""The same of things, whose best ones are those of a few frames: all that is seen of a knife is less like one than what
its best frames show."""
BEST = 0.9
"""Quantile, over the frames, of a phrase's best segment: a thing is in view in a tenth of the frames or more."""
RIVAL_LEAD = 0.1
"""How much more similar a rival must be (of features without what all have in common)."""
SYNONYM = 0.7
"""Common phrases that are so similar to a phrase mean the same, and are no rivals."""
TOP_FRAMES = 4
"""How many frames' best segments say how sure a phrase is."""
_MAX_ROWS = 20000
_MIN_SHARE = 0.0008
_MIN_PHRASES = 20
_CHANCE = 1.5
_MIN_SPREAD = 0.15
MIN_PIXELS = 6
"""Fewer pixels of a view are noise."""
_COMMON = Path(__file__).parent / "configs" / "common_phrases.json"


@dataclass(frozen=True)
class Verdict:
    """What the whole scene says of a phrase."""

    phrase: str
    """What was asked."""
    sure: float
    """How sure the scene is; comparable between the phrases of one scene."""
    needed: float
    """From where on a phrase's thing is in the scene."""
    threshold: float
    """Relevancy above which a pixel may be the thing."""
    of_things: float
    """Relevancy above which a thing may be what the phrase names, of all that frames show of it."""

    @property
    def in_scene(self) -> bool:
        """Whether the thing is in the scene."""
        return self.sure >= self.needed


class Calibration:
    """Fits answers to a scene, for one kind of features.

    Args:
        query: Encodes phrases.
        kind: Which features.
        features: Stored features of segments, of unit length, embeddings as phrases are.
        frames: The frame that each is of.
        common: Phrases for common things.
    """

    def __init__(
        self,
        query: Query,
        kind: str,
        features: Float[np.ndarray, "rows dim"],
        frames: Sequence[int] | np.ndarray,
        common: Sequence[str],
    ):
        self.query, self.kind, self.common = query, kind, tuple(common)
        self.features = features.astype(np.float32)
        self.mean = self.features.mean(axis=0)
        order = np.argsort(frames, kind="stable")
        self.features = self.features[order]
        self._starts = np.flatnonzero(np.diff(np.asarray(frames)[order], prepend=-1))
        self._verdicts: dict[str, Verdict] = {}
        self._asked_of: QueryConfig | None = None

    @cached_property
    def phrases(self) -> Float[np.ndarray, "common dim"]:
        """Embeddings of the common phrases."""
        return _unit(self.query.embeddings(self.kind, self.common).numpy())

    @cached_property
    def phrases_mean(self) -> Float[np.ndarray, "dim"]:
        """What all common phrases have in common."""
        return self.phrases.mean(axis=0)

    @cached_property
    def _centred(self) -> tuple[np.ndarray, np.ndarray]:
        """Segments and common phrases without what all segments, or all phrases, have in common."""
        return _unit(self.features - self.mean), _unit(self.phrases - self.phrases_mean)

    @cached_property
    def _chance(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and spread of the common phrases' similarities to each segment."""
        segments, phrases = self._centred
        similar = segments @ phrases.T
        return similar.mean(axis=1), np.maximum(similar.std(axis=1), 1e-6)

    @cached_property
    def needed(self) -> float:
        """How sure a phrase must be for its thing to be in the scene."""
        return parting(self._sure(self._centred[1]))

    def verdicts(self, phrases: Sequence[str]) -> list[Verdict]:
        """What the scene says of phrases.

        Args:
            phrases: What is asked; an example that was pointed at is in the scene.

        Raises:
            QueryError: If the text encoder does not work.
        """
        known = self._known()
        known.update(
            {phrase: Verdict(phrase, 1.0, 0.0, 0.5, 0.5) for phrase in phrases if EXAMPLE_NAME.fullmatch(phrase)}
        )
        missing = [phrase for phrase in dict.fromkeys(phrases) if phrase not in known]
        if missing:
            sure = self._sure(self._asked(missing))
            relevancies = self.relevancies(self.features, missing)
            for i, phrase in enumerate(missing):
                known[phrase] = Verdict(phrase, float(sure[i]), self.needed, *self._thresholds(relevancies[:, i]))
        return [known[phrase] for phrase in phrases]

    def _known(self) -> dict[str, Verdict]:
        """Verdicts under the query's negatives, temperature and prefix; those under others are forgotten."""
        config = replace(self.query.config, text="", threshold=0.5, strength=1.0, contour=None, presets=())
        if config != self._asked_of:
            self._verdicts, self._asked_of = {}, config
        return self._verdicts

    def relevancies(
        self, features: Float[np.ndarray, "n dim"], phrases: Sequence[str]
    ) -> Float[np.ndarray, "n phrases"]:
        """Relevancy of features to phrases, to be held against the thresholds of their verdicts.

        Args:
            features: Features of unit length.
            phrases: The phrases.
        """
        features = np.asarray(features, np.float32)
        return self.query.relevancies(torch.from_numpy(features), self.kind, phrases, decoded=True).float().numpy()

    def _thresholds(self, relevancy: Float[np.ndarray, "rows"]) -> tuple[float, float]:
        """Relevancies between the usual segment's and the best ones', in the unit of similarities, for pixels and for
        things: what few frames show has no part in the first, so that its best are those of the likeliest other thing.
        """
        odds = _odds(relevancy.astype(np.float64))
        usual, best = float(np.median(odds)), np.sort(np.maximum.reduceat(odds, self._starts))
        levels = (BETWEEN, float(np.quantile(best, BEST))), (BETWEEN_THINGS, float(best[-TOP_FRAMES:].mean()))
        pixels, things = (1 / (1 + np.exp(-(usual + share * (level - usual)))) for share, level in levels)
        return float(pixels), float(max(pixels, things))

    def _sure(self, phrases: Float[np.ndarray, "phrases dim"]) -> Float[np.ndarray, "phrases"]:
        """How sure phrases are, of centred embeddings."""
        mean, spread = self._chance
        scores = (self._centred[0] @ phrases.T - mean[:, None]) / spread[:, None]
        best = -np.sort(-np.maximum.reduceat(scores, self._starts, axis=0), axis=0)
        return best[:TOP_FRAMES].mean(axis=0)

    def likeness(self, features: Float[np.ndarray, "n dim"], phrases: Sequence[str]) -> Float[np.ndarray, "n phrases"]:
        """How like features are to phrases, each without what all segments, or all phrases, have in common.

        Args:
            features: Features of unit length.
            phrases: The phrases.
        """
        return _unit(features - self.mean) @ self._asked(phrases).T

    def lead(
        self, features: Float[np.ndarray, "n dim"], phrases: Sequence[str], rivals: Sequence[str] = ()
    ) -> Float[np.ndarray, "n phrases"]:
        """How much more features are like phrases than like any rival that means something else.

        Args:
            features: Features of unit length.
            phrases: The phrases; nothing means something else than an example that was pointed at.
            rivals: The rivals; none: the common phrases.
        """
        centred, against = _unit(features - self.mean), self._asked(rivals) if rivals else self._centred[1]
        similar, lead = centred @ against.T, np.full((len(features), len(phrases)), np.inf, np.float32)
        for i, (phrase, asked) in enumerate(zip(phrases, self._asked(phrases), strict=True)):
            others = asked @ against.T < SYNONYM
            if others.any() and not EXAMPLE_NAME.fullmatch(phrase):
                lead[:, i] = centred @ asked - similar[:, others].max(axis=1)
        return lead

    def rivals(self, features: Float[np.ndarray, "n dim"], phrase: str) -> list[str]:
        """The common phrase that each feature is most like, of those that mean something else than a phrase.

        Args:
            features: Features of unit length.
            phrase: The phrase; there must be such phrases, as there are where `lead` is finite.
        """
        against = self._centred[1]
        others = np.flatnonzero(self._asked([phrase])[0] @ against.T < SYNONYM)
        similar = _unit(features - self.mean) @ against[others].T
        return [self.common[others[i]] for i in similar.argmax(axis=1)]

    def _asked(self, phrases: Sequence[str]) -> Float[np.ndarray, "phrases dim"]:
        """Embeddings of phrases without what all common phrases have in common."""
        return _unit(_unit(self.query.embeddings(self.kind, list(phrases)).numpy()) - self.phrases_mean)

    def masks(
        self,
        features: Float[Tensor, "height width dim"],
        relevancies: Float[np.ndarray, "height width phrases"],
        phrases: Sequence[str],
    ) -> Bool[np.ndarray, "height width phrases"]:
        """Which pixels of a view are what phrases name, whether or not the scene has it.

        Args:
            features: The view's features, decoded, of unit length.
            relevancies: Relevancy of each pixel to each phrase.
            phrases: The phrases.
        """
        thresholds = np.array([verdict.threshold for verdict in self.verdicts(phrases)])
        found = relevancies > thresholds
        shown = found.any(axis=-1)
        found[shown] &= self.lead(features.cpu().float().numpy()[shown], phrases) > -RIVAL_LEAD
        return found


def calibration(query: Query, kind: str, store: FeatureStore) -> Calibration | None:
    """The calibration of a kind of features.

    Args:
        query: Encodes phrases.
        kind: Which features.
        store: Where they are stored.

    Returns:
        None where nothing can be said: no words can be asked, or nothing is stored (an imported run).
    """
    if kind not in query.kinds or not len(store.table):
        return None
    every = max(1, -(-len(store.table) // _MAX_ROWS))
    features, frames = [], []
    for frame in range(0, len(store), every):
        index, table = store.frame_features(frame)
        area = np.bincount(index[index < len(table)].ravel(), minlength=len(table))
        kept = table[area >= _MIN_SHARE * index.size]
        features.append(kept)
        frames += [frame] * len(kept)
    if not frames:
        return None
    with torch.no_grad():
        embeddings = store.decode(torch.from_numpy(np.concatenate(features))).cpu().numpy()
    return Calibration(query, kind, _unit(embeddings), frames, common_phrases()[kind])


@lru_cache(maxsize=1)
def common_phrases() -> dict[str, list[str]]:
    """Phrases for common things ("image") and for common actions ("video"); no scene has more than a few."""
    return json.loads(_COMMON.read_text(encoding="utf-8"))


def standing(verdict: Verdict, mask: Bool[np.ndarray, "height width"], pixels: int = 1) -> str:
    """Whether a phrase's thing is "in view", "in the scene, not in view" or "not in the scene".

    Args:
        verdict: What the whole scene says of the phrase.
        mask: The pixels of a view that are the thing, of which a few are noise.
        pixels: Pixels of the view for each of the mask's.
    """
    if not verdict.in_scene:
        return "not in the scene"
    return "in view" if pixels * int(mask.sum()) >= MIN_PIXELS else "in the scene, not in view"


def parting(sure: Float[np.ndarray, "phrases"]) -> float:
    """Where phrases for what is there part from those for what is not, of how sure many are.

    Two normal distributions are fitted; the parting is where both are as likely, but never nearer to the middle of all
    than chance alone may reach.

    Args:
        sure: How sure the phrases are; most are of what is not there.
    """
    sure = np.sort(np.asarray(sure, np.float64))
    middle = float(np.median(sure))
    lower_bound = middle + _CHANCE * max(middle - float(np.quantile(sure, 0.16)), 1e-6)
    if len(sure) < _MIN_PHRASES:
        return lower_bound
    means, spreads = np.quantile(sure, (0.3, 0.95)), np.full(2, max(float(sure.std()), _MIN_SPREAD))
    shares = np.array([0.8, 0.2])
    for _ in range(200):
        likely = shares * np.exp(-0.5 * ((sure[:, None] - means) / spreads) ** 2) / spreads + 1e-300
        likely /= likely.sum(axis=1, keepdims=True)
        counts = likely.sum(axis=0)
        means = (likely * sure[:, None]).sum(axis=0) / counts
        spreads = np.sqrt((likely * (sure[:, None] - means) ** 2).sum(axis=0) / counts)
        spreads, shares = np.maximum(spreads, _MIN_SPREAD), counts / len(sure)
    between = np.linspace(means[0], means[1], 400)
    density = np.exp(-0.5 * ((between[:, None] - means) / spreads) ** 2) / spreads
    return max(float(between[np.abs(density[:, 0] - density[:, 1]).argmin()]), lower_bound)


def _odds(relevancy: Float[np.ndarray, "*bs"]) -> Float[np.ndarray, "*bs"]:
    """The logarithm of relevancy's odds, which grows evenly with similarity."""
    clipped = np.clip(relevancy, 1e-7, 1 - 1e-7)
    return np.log(clipped / (1 - clipped))


def _unit(vectors: Float[np.ndarray, "*bs dim"]) -> Float[np.ndarray, "*bs dim"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
