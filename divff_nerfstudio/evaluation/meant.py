"""Which things a phrase means: those that are as like it as the likeliest, if that is like it at all, and those that
are called so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from divff_nerfstudio.calibration import Calibration
from divff_nerfstudio.objects.things import Thing

Standing = Literal["a thing of this scene", "in the scene, not a thing of it", "not in the scene"]
_NEARLY = 0.85
"""A thing is nearly as like a phrase as the likeliest at so much of the way there from the usual thing."""


@dataclass(frozen=True, eq=False)
class Meant:
    """What a phrase means in a scene."""

    phrase: str
    """The phrase."""
    in_scene: bool | None
    """Whether the scene has what it names, be it a thing or not: a hand is none; None: nobody knows."""
    things: tuple[Thing, ...]
    """The things that it means, the likeliest first."""
    rival: Thing | None
    """The thing that is most like it of those that it does not mean; None if there are no others."""

    @property
    def standing(self) -> Standing | None:
        """Whether it means a thing, or something else that the scene has, or nothing in it; None: nobody knows."""
        if self.in_scene is None:
            return None
        if self.things:
            return "a thing of this scene"
        return "in the scene, not a thing of it" if self.in_scene else "not in the scene"


def meant(phrase: str, things: list[Thing], calibration: Calibration | None) -> Meant:
    """What a phrase means: things that pass its threshold, and those whose name it is.

    Without a threshold, something would always be the likeliest: a hand, which is no thing, would be a cupboard. A name
    is given by what else a thing might be, not by what else might be the phrase: it holds as it is.

    Args:
        phrase: The phrase.
        things: All things of the scene.
        calibration: That of the features that things were found by; None: nothing can be told.

    Raises:
        QueryError: If the text encoder does not work.
    """
    if calibration is None:
        return Meant(phrase, None, (), None)
    (verdict,) = calibration.verdicts([phrase])
    if not things:
        return Meant(phrase, verdict.in_scene, (), None)
    features = np.stack([thing.feature for thing in things])
    like = calibration.likeness(features, [phrase])[:, 0]
    usual = float(np.median(like))
    own = like >= usual + _NEARLY * (float(like.max()) - usual)
    own &= calibration.relevancies(features, [phrase])[:, 0] > verdict.of_things
    own = verdict.in_scene & (own | np.array([thing.name == phrase for thing in things]))
    order = [int(i) for i in np.argsort(-like, kind="stable")]
    rival = next((things[i] for i in order if not own[i]), None)
    return Meant(phrase, verdict.in_scene, tuple(things[i] for i in order if own[i]), rival)
