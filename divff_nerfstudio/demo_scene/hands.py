"""Hands and arms: a palm, five jointed fingers, a wrist, a sleeve with a cuff, posed by inverse kinematics.

A hand's frame has its origin in the middle of the palm's skin, y along the fingers, z out of the palm, and x towards
the thumb of a right hand (away from the thumb of a left one).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from divff_nerfstudio.demo_scene.arrays import Rotation, Vector
from divff_nerfstudio.demo_scene.primitives import Ellipsoid
from divff_nerfstudio.demo_scene.renderer import Body, Part
from divff_nerfstudio.demo_scene.shapes import rod, turn_x, turn_z
from divff_nerfstudio.demo_scene.textures import Colour, Knit, Plain

UPPER_ARM, FOREARM = 0.30, 0.27
PALM_THICKNESS = 0.030


@dataclass(frozen=True)
class ActorStyle:
    """Colours of the person."""

    skin: Colour = (0.86, 0.64, 0.52)
    sleeve: Colour = (0.16, 0.42, 0.46)
    stripe: Colour = (0.82, 0.80, 0.72)


@dataclass(frozen=True)
class HandPose:
    """Where a hand is and how far it is closed."""

    position: Vector
    """Middle of the palm's skin, (3,)."""
    rotation: Rotation
    """Hand to world, (3, 3)."""
    curl: float
    """0: flat; 1: fist."""


def hand_rotation(fingers: Vector, palm: Vector) -> Rotation:
    """The frame of a hand whose fingers point along `fingers` and whose palm looks along `palm` (nearly), (3, 3)."""
    y = np.asarray(fingers, dtype=np.float64)
    y = y / np.linalg.norm(y)
    z = np.asarray(palm, dtype=np.float64)
    z = z - (z @ y) * y
    z = z / np.linalg.norm(z)
    return np.stack([np.cross(y, z), y, z], axis=1)


def _finger(root: Vector, lengths: tuple[float, ...], width: float, bends: tuple[float, ...], aim: Rotation, skin):
    """A chain of phalanges from `root`; each bends by radians about the finger's own x axis, towards the palm."""
    parts, point, frame = [], root, aim
    widths = np.linspace(width, width * 0.78, len(lengths) + 1)
    for i, (length, bend) in enumerate(zip(lengths, bends, strict=True)):
        frame = frame @ turn_x(bend)
        end = point + length * frame[:, 1]
        parts.append(rod(point, end, float(widths[i]), float(widths[i + 1]), skin, gloss=0.06))
        point = end
    return parts


def hand_parts(side: int, curl: float, style: ActorStyle) -> tuple[Part, ...]:
    """Parts of a hand in its own frame.

    Args:
        side: +1 right, -1 left.
        curl: 0 flat, 1 fist.
        style: colours.
    """
    skin = Plain(style.skin, mottle=0.25, scale=0.06)
    back = -PALM_THICKNESS / 2
    parts = [
        Part(Ellipsoid((0.043, 0.050, 0.017)), skin, position=(0.0, 0.0, back)),
        Part(Ellipsoid((0.020, 0.034, 0.018)), skin, position=(0.026 * side, -0.018, back + 0.004)),
    ]
    for k, (across, reach, length) in enumerate(
        ((0.031, 0.040, 0.92), (0.0105, 0.046, 1.0), (-0.0105, 0.043, 0.94), (-0.030, 0.034, 0.75))
    ):
        spread = turn_z((-across * 3.2 * (1.0 - 0.7 * curl)) * side)
        bends = (0.10 + 1.15 * curl + 0.05 * k, 0.14 + 1.30 * curl, 0.10 + 0.85 * curl)
        root = np.array([across * side, reach, back])
        parts += _finger(root, (0.044 * length, 0.029 * length, 0.023 * length), 0.0105, bends, spread, skin)
    thumb = turn_z(-side * (0.95 - 0.35 * curl)) @ turn_x(0.2 + 0.5 * curl)
    root = np.array([0.030 * side, -0.022, back + 0.004])
    parts += _finger(root, (0.042, 0.032, 0.024), 0.0125, (0.15, 0.15 + 0.35 * curl, 0.2 + 0.3 * curl), thumb, skin)
    return tuple(parts)


def elbow_position(shoulder: Vector, wrist: Vector, pole: Vector) -> Vector:
    """The elbow of an arm of two bones, bent towards `pole`; an arm too short stretches."""
    line = wrist - shoulder
    distance = np.linalg.norm(line)
    along = line / distance
    stretch = max(1.0, distance / (UPPER_ARM + FOREARM) * 1.001)
    upper, lower = UPPER_ARM * stretch, FOREARM * stretch
    foot = (distance**2 + upper**2 - lower**2) / (2 * distance)
    height = np.sqrt(max(upper**2 - foot**2, 0.0))
    aside = pole - (pole @ along) * along
    return shoulder + foot * along + height * aside / np.linalg.norm(aside)


def arm_bodies(
    side: int, pose: HandPose, shoulder: Vector, pole: Vector, style: ActorStyle, hand: int, arm: int
) -> list[Body]:
    """A hand and its arm, placed.

    Args:
        side: +1 right, -1 left.
        pose: of the hand, in the frame in which the bodies are wanted.
        shoulder: where the arm begins, (3,), same frame.
        pole: direction in which the elbow points, (3,).
        style: colours.
        hand: instance of the hand.
        arm: instance of the sleeve.

    Returns:
        The hand's body (with the wrist), the sleeve's body.
    """
    skin = Plain(style.skin, mottle=0.25, scale=0.06)
    cloth = Knit(style.sleeve, style.stripe)
    heel = pose.position + pose.rotation @ np.array([0.0, -0.058, -PALM_THICKNESS / 2])
    palm_root = pose.position + pose.rotation @ np.array([0.0, -0.03, -PALM_THICKNESS / 2])
    elbow = elbow_position(shoulder, heel, pole)
    back = elbow - heel
    back /= np.linalg.norm(back)
    cuff = heel + 0.085 * back
    wrist = Body(
        (rod(palm_root, heel, 0.026, 0.0255, skin), rod(heel, cuff + 0.02 * back, 0.0245, 0.030, skin)), instance=hand
    )
    sleeve = Body(
        (
            rod(cuff, cuff + 0.018 * back, 0.039, 0.040, Plain(style.stripe), gloss=0.02),
            rod(cuff + 0.02 * back, elbow, 0.038, 0.052, cloth, own_texture=True, gloss=0.02),
            rod(elbow, shoulder, 0.052, 0.065, cloth, own_texture=True, gloss=0.02),
        ),
        instance=arm,
        shadow=0.0,
    )
    fingers = Body(
        hand_parts(side, pose.curl, style), instance=hand, rotation=pose.rotation, position=pose.position, shadow=0.28
    )
    return [fingers, wrist, sleeve]
