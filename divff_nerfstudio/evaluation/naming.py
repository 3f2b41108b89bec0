"""What things are called: the phrase that their features are most like, if the scene is sure that it is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from divff_nerfstudio.calibration import Calibration
from divff_nerfstudio.objects.things import Things


def name_things(things: Things, calibration: Calibration | None, names: Sequence[str] = ()) -> None:
    """Gives things names.

    Args:
        things: The things.
        calibration: That of the features that things were found by; None: they get no names.
        names: What things may be called; none: the common things, of those that the scene is sure to have.

    Raises:
        QueryError: If the text encoder does not work.
    """
    if calibration is None or not things.things:
        return
    offered = list(names) or [v.phrase for v in calibration.verdicts(calibration.common) if v.in_scene]
    if not offered:
        return
    likeness = calibration.likeness(np.stack([thing.feature for thing in things.things]), offered)
    for thing, row in zip(things.things, likeness, strict=True):
        thing.name = offered[int(row.argmax())]
