"""Everyday things: one builder a kind, each colourable, standing on z = 0 around the z axis (metres).

Sizes are a little larger than life, so that they keep a few pixels in small frames.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from divff_nerfstudio.demo_scene.primitives import Box, Ellipsoid, Lathe, Prism, RoundCone, smooth_profile
from divff_nerfstudio.demo_scene.renderer import Part
from divff_nerfstudio.demo_scene.shapes import arc, frame_along, rod, tube, turn_x, turn_y, turn_z, vector
from divff_nerfstudio.demo_scene.textures import Bands, Carton, Colour, Holes, Metal, Plain, Rings, Stone, Wood

Parts = tuple[Part, ...]

COLOURS: dict[str, Colour] = {
    "red": (0.80, 0.10, 0.10),
    "blue": (0.12, 0.32, 0.80),
    "green": (0.12, 0.52, 0.20),
    "yellow": (0.95, 0.82, 0.12),
    "orange": (0.95, 0.48, 0.06),
    "purple": (0.46, 0.18, 0.62),
    "pink": (0.95, 0.50, 0.66),
    "white": (0.92, 0.91, 0.88),
    "black": (0.10, 0.10, 0.11),
    "brown": (0.42, 0.25, 0.13),
    "grey": (0.55, 0.56, 0.58),
    "turquoise": (0.10, 0.66, 0.66),
}
"""Names of colours and their sRGB values."""

CREAM: Colour = (0.93, 0.90, 0.82)
DARK: Colour = (0.09, 0.09, 0.10)


def shaded(colour: Colour, factor: float) -> Colour:
    """A darker (factor < 1) or lighter version of a colour."""
    return tuple(float(np.clip(c * factor if factor <= 1 else 1 - (1 - c) / factor, 0, 1)) for c in colour)  # type: ignore[return-value]


def _handle(at: float, height: float, radius: float, thick: float, colour: Colour) -> Parts:
    """A mug's ear on the +x side."""
    ring = arc(radius, -80.0, 80.0, 7) * [0.85, 1.0, 1.1] + vector(at, 0.0, height)
    return tube(ring, thick, Plain(colour), gloss=0.2)


def mug(colour: Colour) -> Parts:
    wall = ((0.0, 0.0), (0.044, 0.0), (0.049, 0.006), (0.049, 0.112), (0.047, 0.115), (0.044, 0.112), (0.043, 0.012))
    inside = Bands(colour, ((0.108, 0.2, CREAM),))
    return (
        Part(Lathe((*wall, (0.0, 0.012))), inside, gloss=0.35, hollow=0.11),
        *_handle(0.046, 0.060, 0.034, 0.0085, colour),
    )


def bowl(colour: Colour) -> Parts:
    outer = smooth_profile([(0.045, 0.0), (0.075, 0.014), (0.108, 0.048), (0.122, 0.085)], 2)
    inner = (*smooth_profile([(0.118, 0.085), (0.103, 0.050), (0.070, 0.018), (0.045, 0.010)], 2), (0.0, 0.010))
    return (
        Part(Lathe(((0.0, 0.0), *outer, *inner)), Bands(colour, ((0.074, 0.086, CREAM),)), gloss=0.35, hollow=0.085),
    )


def handles(
    root: tuple[float, float, float], tip: tuple[float, float, float], width: float, texture: Plain, **options: float
) -> Parts:
    """A bow at either side in x, from where it begins (y on both sides) to where it is farthest out."""
    (x, y, z), (far_x, far_y, far_z) = root, tip
    bows = (
        np.array([[side * x, -y, z], [side * far_x, -far_y, far_z], [side * far_x, far_y, far_z], [side * x, y, z]])
        for side in (1.0, -1.0)
    )
    return tuple(part for bow in bows for part in tube(bow, width, texture, **options))


def colander(colour: Colour) -> Parts:
    outer = smooth_profile([(0.055, 0.012), (0.095, 0.022), (0.128, 0.062), (0.138, 0.108)], 2)
    inner = (*smooth_profile([(0.133, 0.108), (0.122, 0.062), (0.088, 0.026), (0.055, 0.020)], 2), (0.0, 0.020))
    skin = Holes(colour, shaded(colour, 0.22), 0.026, 0.094, rows=4, around=18)
    rim = Lathe(((0.134, 0.108), (0.150, 0.108), (0.152, 0.113), (0.134, 0.114)))
    grips = handles((0.148, 0.045, 0.111), (0.182, 0.03, 0.112), 0.008, Plain(shaded(colour, 0.8)), gloss=0.2)
    foot = Lathe(((0.056, 0.0), (0.060, 0.0), (0.062, 0.016)))
    return (
        Part(Lathe((*outer, *inner)), skin, gloss=0.3, hollow=0.1),
        Part(rim, Plain(colour), gloss=0.3),
        Part(foot, Plain(shaded(colour, 0.8))),
        *grips,
    )


def plate(colour: Colour) -> Parts:
    profile = ((0.0, 0.0), (0.070, 0.0), (0.130, 0.020), (0.130, 0.024), (0.080, 0.009), (0.0, 0.009))
    rim = Rings(colour, ((0.108, 0.116, shaded(colour, 0.45)), (0.121, 0.125, shaded(colour, 0.45))))
    return (Part(Lathe(profile), rim, gloss=0.3),)


def pan(colour: Colour) -> Parts:
    profile = (
        (0.0, 0.0),
        (0.108, 0.0),
        (0.116, 0.006),
        (0.134, 0.048),
        (0.130, 0.048),
        (0.112, 0.009),
        (0.0, 0.009),
    )
    iron = Rings(colour, ((0.0, 0.100, shaded(colour, 0.75)), (0.128, 0.140, shaded(colour, 1.3))))
    grip = np.array([[0.128, 0.0, 0.040], [0.180, 0.0, 0.055], [0.335, 0.0, 0.066]])
    return (
        Part(Lathe(profile), iron, gloss=0.3, hollow=0.06),
        *tube(grip[:2], [0.010, 0.013], Metal()),
        *tube(grip[1:], [0.015, 0.018], Plain(shaded(colour, 0.6)), gloss=0.25),
    )


def pot(colour: Colour) -> Parts:
    profile = (
        (0.0, 0.0),
        (0.105, 0.0),
        (0.112, 0.008),
        (0.112, 0.130),
        (0.116, 0.133),
        (0.107, 0.130),
        (0.106, 0.012),
        (0.0, 0.012),
    )
    ears = handles((0.11, 0.04, 0.105), (0.148, 0.03, 0.108), 0.009, Plain(DARK))
    return (Part(Lathe(profile), Bands(colour, ((0.118, 0.14, (0.75, 0.76, 0.78)),)), gloss=0.4, hollow=0.13), *ears)


def bottle(colour: Colour) -> Parts:
    body = smooth_profile([(0.0, 0.0), (0.043, 0.002), (0.045, 0.02), (0.045, 0.17), (0.018, 0.225), (0.016, 0.28)], 2)
    label = Bands(colour, ((0.06, 0.145, CREAM), (0.07, 0.09, shaded(colour, 0.55))))
    cap = ((0.0, 0.305), (0.019, 0.305), (0.020, 0.275), (0.0, 0.272))
    return (Part(Lathe(body), label, gloss=0.6), Part(Lathe(cap[::-1]), Plain(shaded(colour, 0.45)), gloss=0.3))


def knife(colour: Colour) -> Parts:
    """Lies on its side: the blade along +y with its edge towards -x, the handle along -y."""
    blade = Prism(
        ((-0.020, 0.005), (0.024, 0.005), (0.024, 0.14), (0.012, 0.195), (-0.006, 0.175), (-0.020, 0.13)), 0.002
    )
    grip = RoundCone(0.105, 0.013, 0.0125)
    return (
        Part(blade, Metal((0.80, 0.82, 0.85)), position=(0.0, 0.0, 0.013), gloss=0.7),
        Part(grip, Plain(colour), position=(0.010, 0.002, 0.013), rotation=turn_x(np.pi / 2), gloss=0.2),
        *(Part(Ellipsoid((0.004, 0.004, 0.002)), Metal(), position=(0.010, y, 0.0255)) for y in (-0.03, -0.075)),
    )


def cutting_board(colour: Colour) -> Parts:
    wood = Wood(colour, shaded(colour, 0.62), axis=0, plank=0.055, length=0.6)
    return (
        Part(Box((0.17, 0.115, 0.009)), wood, position=(0.0, 0.0, 0.009)),
        Part(Box((0.03, 0.03, 0.009)), wood, position=(0.198, 0.0, 0.009)),
        Part(Lathe(((0.0, 0.0186), (0.012, 0.0186))), Plain(DARK), position=(0.206, 0.0, 0.0)),
    )


def carrot(colour: Colour) -> Parts:
    """Lies along x, thick end at -x with its green."""
    points = np.array([[-0.105, 0.0, 0.026], [-0.03, 0.002, 0.024], [0.05, 0.0, 0.017], [0.125, -0.006, 0.008]])
    green = Plain((0.22, 0.50, 0.14))
    leaves = tuple(
        rod(
            (-0.118, 0.0, 0.03),
            (-0.118 - 0.05 * np.cos(a), 0.055 * np.sin(a), 0.03 + 0.012 * (i % 2)),
            0.006,
            0.009,
            green,
        )
        for i, a in enumerate((-0.9, -0.3, 0.3, 0.9))
    )
    return (*tube(points, [0.026, 0.023, 0.016, 0.006], Plain(colour, mottle=0.5, scale=0.08)), *leaves)


def banana(colour: Colour) -> Parts:
    angles = np.radians(np.linspace(-58.0, 58.0, 7))
    points = np.stack([0.12 * np.sin(angles), 0.12 * np.cos(angles) - 0.085, np.full(7, 0.021)], axis=1)
    widths = [0.009, 0.017, 0.0205, 0.021, 0.0205, 0.017, 0.008]
    tip = Plain((0.28, 0.20, 0.08))
    return (
        *tube(points, widths, Plain(colour, mottle=0.35, scale=0.1)),
        rod(points[0], points[0] + vector(-0.018, -0.022, 0.004), 0.0075, 0.0065, tip),
        rod(points[-1], points[-1] + vector(0.004, -0.006, 0.0), 0.008, 0.006, tip),
    )


def apple(colour: Colour) -> Parts:
    profile = smooth_profile(
        [(0.0, 0.008), (0.022, 0.0), (0.043, 0.024), (0.046, 0.052), (0.030, 0.080), (0.010, 0.079), (0.0, 0.070)], 2
    )
    return (
        Part(Lathe(profile), Plain(colour, mottle=0.6, scale=0.12), gloss=0.4),
        rod((0.0, 0.0, 0.070), (0.008, 0.0, 0.094), 0.0028, 0.0035, Plain((0.30, 0.20, 0.10))),
    )


def lemon(colour: Colour) -> Parts:
    skin = Plain(colour, mottle=0.3, scale=0.05)
    return (
        Part(Ellipsoid((0.046, 0.034, 0.034)), skin, position=(0.0, 0.0, 0.034), gloss=0.2),
        rod((0.04, 0.0, 0.034), (0.052, 0.0, 0.034), 0.011, 0.008, skin),
        rod((-0.04, 0.0, 0.034), (-0.05, 0.0, 0.034), 0.012, 0.009, skin),
    )


def sponge(colour: Colour) -> Parts:
    scourer = Stone(shaded(colour, 0.45), shaded(colour, 0.3))
    foam = Stone(colour, shaded(colour, 0.6))
    return (
        Part(Box((0.058, 0.037, 0.005)), scourer, position=(0.0, 0.0, 0.005), gloss=0.0),
        Part(Box((0.058, 0.037, 0.017)), foam, position=(0.0, 0.0, 0.027), gloss=0.0),
    )


def cereal_box(colour: Colour) -> Parts:
    print_ = Carton(colour, (0.96, 0.92, 0.78), (0.98, 0.80, 0.22), 0.27, 0.19)
    return (Part(Box((0.095, 0.034, 0.135)), print_, position=(0.0, 0.0, 0.135), gloss=0.15),)


def milk_carton(colour: Colour) -> Parts:
    print_ = Bands((0.95, 0.95, 0.94), ((0.0, 0.045, colour), (0.105, 0.16, colour), (0.176, 0.3, colour)))
    gable = Prism(((-0.044, 0.0), (0.044, 0.0), (0.004, 0.045), (-0.004, 0.045)), 0.044)
    return (
        Part(Box((0.044, 0.044, 0.088)), print_, position=(0.0, 0.0, 0.088), gloss=0.15),
        Part(gable, print_, position=(0.0, 0.0, 0.176), rotation=turn_x(np.pi / 2), gloss=0.15),
        Part(
            Box((0.044, 0.004, 0.012)),
            Plain(shaded(colour, 0.85)),
            position=(0.0, 0.0, 0.230),
            rotation=turn_z(np.pi / 2),
        ),
    )


def jar(colour: Colour) -> Parts:
    body = smooth_profile([(0.0, 0.0), (0.050, 0.002), (0.053, 0.02), (0.053, 0.105), (0.044, 0.128)], 2)
    lid = ((0.0, 0.155), (0.045, 0.155), (0.048, 0.152), (0.048, 0.126), (0.0, 0.126))
    return (
        Part(Lathe(body), Bands(colour, ((0.035, 0.09, CREAM),)), gloss=0.6),
        Part(Lathe(lid[::-1]), Metal((0.78, 0.66, 0.36)), gloss=0.5),
    )


def can(colour: Colour) -> Parts:
    tin = Bands(colour, ((0.0, 0.006, (0.75, 0.76, 0.78)), (0.035, 0.06, CREAM), (0.113, 0.2, (0.75, 0.76, 0.78))))
    profile = ((0.0, 0.0), (0.043, 0.0), (0.043, 0.119), (0.039, 0.119), (0.038, 0.114), (0.0, 0.114))
    return (Part(Lathe(profile), tin, gloss=0.5),)


def kettle(colour: Colour) -> Parts:
    body = smooth_profile([(0.0, 0.0), (0.096, 0.002), (0.102, 0.03), (0.085, 0.11), (0.045, 0.160), (0.0, 0.166)], 2)
    bow = arc(0.082, 15.0, 165.0, 8) * [1.0, 1.0, 0.9] + vector(0.0, 0.0, 0.140)
    return (
        Part(Lathe(body), Plain(colour), gloss=0.6),
        rod((0.075, 0.0, 0.085), (0.150, 0.0, 0.150), 0.022, 0.012, Plain(colour), gloss=0.5),
        *tube(bow, 0.0095, Plain(DARK)),
        Part(Ellipsoid((0.014, 0.014, 0.012)), Plain(DARK), position=(0.0, 0.0, 0.176)),
    )


def spoon(colour: Colour) -> Parts:
    """Lies along y, the bowl at +y."""
    stem = np.array([[0.0, 0.05, 0.010], [0.0, -0.04, 0.016], [0.0, -0.15, 0.010]])
    return (
        *tube(stem, [0.0075, 0.0075, 0.0095], Plain(colour, mottle=0.3)),
        Part(Ellipsoid((0.029, 0.043, 0.009)), Plain(colour, mottle=0.3), position=(0.0, 0.088, 0.009), gloss=0.3),
        Part(Ellipsoid((0.021, 0.033, 0.005)), Plain(shaded(colour, 0.6)), position=(0.0, 0.088, 0.0145)),
    )


def glass(colour: Colour) -> Parts:
    profile = ((0.0, 0.0), (0.032, 0.0), (0.042, 0.125), (0.039, 0.125), (0.030, 0.012), (0.0, 0.012))
    drink = Bands(shaded(colour, 1.6), ((0.0, 0.085, colour),))
    return (Part(Lathe(profile), drink, gloss=0.7, hollow=0.1),)


def whisk(colour: Colour) -> Parts:
    """Lies along y, the wires at +y."""
    wires = []
    for turn in (0.0, np.pi / 3, 2 * np.pi / 3):
        loop = arc(1.0, -90.0, 270.0, 11) * [0.030, 1.0, 0.055]
        loop = np.stack([loop[:, 0], np.zeros(11), loop[:, 2]], axis=1) @ turn_z(turn).T
        upright = np.stack([loop[:, 0], 0.085 + loop[:, 2], loop[:, 1]], axis=1) + vector(0.0, 0.0, 0.031)
        wires += tube(upright, 0.0028, Metal((0.82, 0.83, 0.85)), gloss=0.6)
    return (*wires, rod((0.0, 0.03, 0.031), (0.0, -0.12, 0.016), 0.011, 0.014, Plain(colour)))


def teapot(colour: Colour) -> Parts:
    body = smooth_profile([(0.0, 0.0), (0.050, 0.0), (0.082, 0.035), (0.080, 0.08), (0.045, 0.112), (0.0, 0.116)], 2)
    spout = np.array([[0.07, 0.0, 0.045], [0.115, 0.0, 0.07], [0.135, 0.0, 0.11]])
    ear = arc(0.040, 110.0, 250.0, 7) + vector(-0.068, 0.0, 0.062)
    return (
        Part(Lathe(body), Bands(colour, ((0.05, 0.058, CREAM), (0.064, 0.068, CREAM))), gloss=0.5),
        *tube(spout, [0.018, 0.013, 0.009], Plain(colour), gloss=0.4),
        *tube(ear, 0.008, Plain(colour), gloss=0.4),
        Part(Ellipsoid((0.013, 0.013, 0.012)), Plain(shaded(colour, 0.7)), position=(0.0, 0.0, 0.126)),
    )


def rolling_pin(colour: Colour) -> Parts:
    """Lies along x."""
    wood = Wood(colour, shaded(colour, 0.7), axis=0, plank=0.2)
    across = turn_y(np.pi / 2)
    barrel = ((0.0, -0.12), (0.030, -0.12), (0.032, -0.115), (0.032, 0.115), (0.030, 0.12), (0.0, 0.12))
    return (
        Part(Lathe(barrel), wood, position=(0.0, 0.0, 0.032), rotation=across),
        rod((0.12, 0.0, 0.032), (0.185, 0.0, 0.032), 0.010, 0.013, wood),
        rod((-0.12, 0.0, 0.032), (-0.185, 0.0, 0.032), 0.010, 0.013, wood),
    )


def towel(colour: Colour) -> Parts:
    """A folded cloth."""
    stripe = Bands(colour, ((0.010, 0.014, shaded(colour, 0.6)), (0.022, 0.027, shaded(colour, 0.6))))
    return (
        Part(Box((0.085, 0.060, 0.009)), stripe, position=(0.0, 0.0, 0.009), gloss=0.0),
        Part(Box((0.080, 0.056, 0.008)), stripe, position=(0.003, 0.002, 0.025), rotation=turn_z(0.05), gloss=0.0),
        Part(
            RoundCone(0.105, 0.009, 0.009),
            Plain(colour),
            position=(0.083, -0.052, 0.018),
            rotation=frame_along(np.array([0.0, 1.0, 0.0])),
            gloss=0.0,
        ),
    )


_BUILDERS = (
    mug, bowl, colander, plate, pan, pot, bottle, knife, cutting_board, carrot, banana, apple, lemon, sponge,
    cereal_box, milk_carton, jar, can, kettle, spoon, glass, whisk, teapot, rolling_pin, towel,
)  # fmt: skip
BUILDERS: dict[str, Callable[[Colour], Parts]] = {each.__name__.replace("_", " "): each for each in _BUILDERS}
"""Kind -> builder of its parts from a colour."""
