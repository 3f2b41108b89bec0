"""What things are called: the phrase that their features are most like, if the scene is sure that it is there, and no
other phrase is as like them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from divff_nerfstudio.calibration import Calibration
from divff_nerfstudio.objects.things import Things

_LEAD = 0.04
"""A thing has a phrase for a name if it is more like it than like all that mean something else, by so much."""


def name_things(things: Things, calibration: Calibration | None, names: Sequence[str] = ()) -> None:
    """Gives things names.

    Args:
        things: The things.
        calibration: That of the features that things were found by; None: they get no names.
        names: What things may be called, one of which each is given; none: what the text encoder has learned to tell
            apart, or common things, that the scene is sure to have, and no name to what is as like another.

    Raises:
        QueryError: If the text encoder does not work.
    """
    if calibration is None or not things.things:
        return
    known = list(names) or calibration.query.names(calibration.kind) or calibration.common
    offered = list(names) or [v.phrase for v in calibration.verdicts(known) if v.in_scene]
    if not offered:
        return
    features = np.stack([thing.feature for thing in things.things])
    best = calibration.likeness(features, offered).argmax(axis=1)
    lead = calibration.lead(features, offered, known)
    for i, (thing, own) in enumerate(zip(things.things, best, strict=True)):
        if names or lead[i, own] > _LEAD:
            thing.name = offered[own]
