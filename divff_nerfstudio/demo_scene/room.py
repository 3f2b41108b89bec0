"""The kitchen: floor, walls, window, counter with sink and hob, cupboards, drawers, oven, fridge, shelf.

World: x along the counter, y towards the back wall, z up, metres; the counter's front edge is at y = 0.
"""

from __future__ import annotations

import numpy as np

from divff_nerfstudio.demo_scene.arrays import Rotation
from divff_nerfstudio.demo_scene.objects import shaded
from divff_nerfstudio.demo_scene.plan import (
    BOARD,
    BOARD_HALF,
    BOARD_TOP,
    COUNTER_Z,
    CUPBOARD_Y,
    CUPBOARD_Z,
    HOB_TOP,
    HOB_X,
    HOB_Y,
    LEFT_X,
    NUMBER,
    PLATES,
    RIGHT_X,
    SINK,
    SINK_FLOOR,
    SINK_HALF,
    WALL_Y,
    RoomStyle,
)
from divff_nerfstudio.demo_scene.primitives import Box, Ellipsoid, Lathe, Prism, Rectangle
from divff_nerfstudio.demo_scene.renderer import Body, Part
from divff_nerfstudio.demo_scene.shapes import arc, rod, tube, turn_x, turn_y, vector
from divff_nerfstudio.demo_scene.textures import (
    Colour,
    Metal,
    Outdoors,
    Painting,
    Panel,
    Plain,
    Rings,
    Texture,
    TileTexture,
    Wood,
)


def _slab(name: str, x: tuple, y: tuple, z: tuple, texture: Texture, **options: object) -> Part:
    """A box between two corners."""
    low, high = np.array([x[0], y[0], z[0]]), np.array([x[1], y[1], z[1]])
    half = tuple(float(h) for h in (high - low) / 2)
    centre = tuple(float(c) for c in (high + low) / 2)
    return Part(Box(half), texture, position=centre, instance=NUMBER[name], **options)  # type: ignore[arg-type]


def _wall(name: str, centre: tuple, half: tuple[float, float], rotation: Rotation, texture: Texture) -> Part:
    return Part(Rectangle(*half), texture, position=centre, rotation=rotation, instance=NUMBER[name], gloss=0.03)


def _shell(style: RoomStyle) -> list[Part]:
    """Floor, ceiling, walls."""
    upright, sideways = turn_x(np.pi / 2), turn_y(np.pi / 2)
    floor = TileTexture(style.floor, shaded(style.floor, 0.5), 0.3, 0.3, 0.008, chequer=style.floor_other)
    tiles = TileTexture(style.tile, style.grout, 0.135, 0.135, 0.006, accent=style.accent)
    middle, half = (LEFT_X + RIGHT_X) / 2, (RIGHT_X - LEFT_X) / 2
    paint = Plain(style.wall, mottle=0.10)
    return [
        _wall("floor", (middle, -0.7, 0.0), (half, 1.4), np.eye(3), floor),
        _wall("ceiling", (middle, -0.7, 2.5), (half, 1.4), np.eye(3), Plain((0.93, 0.92, 0.90))),
        _wall("back wall", (middle, WALL_Y, 1.47 / 2), (half, 1.47 / 2), upright, tiles),
        _wall("back wall", (middle, WALL_Y, (1.47 + 2.5) / 2), (half, (2.5 - 1.47) / 2), upright, paint),
        _wall("left wall", (LEFT_X, -0.7, 1.25), (1.25, 1.4), sideways, paint),
        _wall("right wall", (RIGHT_X, -0.7, 1.25), (1.25, 1.4), sideways, paint),
    ]


def _window() -> list[Part]:
    """A window over the sink, its sill, a plant on it."""
    x, z, half_x, half_z = SINK[0], 1.56, 0.42, 0.40
    frame = Plain((0.93, 0.93, 0.91))
    y = (WALL_Y - 0.03, WALL_Y)
    outer = ((x - half_x, x + half_x), (z - half_z, z + half_z))
    view = Part(
        Rectangle(half_x, half_z),
        Outdoors((x, z), (half_x, half_z)),
        position=(x, WALL_Y - 0.004, z),
        rotation=turn_x(np.pi / 2),
        instance=NUMBER["window"],
        emission=0.85,
    )
    bars = [
        _slab("window", (outer[0][0] - 0.03, outer[0][0] + 0.02), y, (outer[1][0] - 0.03, outer[1][1]), frame),
        _slab("window", (outer[0][1] - 0.02, outer[0][1] + 0.03), y, (outer[1][0] - 0.03, outer[1][1]), frame),
        _slab("window", (x - 0.015, x + 0.015), y, outer[1], frame),
        _slab("window", outer[0], y, (z + 0.02, z + 0.045), frame),
        _slab("window", outer[0], y, (outer[1][1] - 0.02, outer[1][1] + 0.03), frame),
        _slab(
            "window", (x - 0.48, x + 0.48), (WALL_Y - 0.11, WALL_Y), (outer[1][0] - 0.045, outer[1][0] - 0.02), frame
        ),
    ]
    sill = outer[1][0] - 0.02
    pot = ((0.0, 0.0), (0.036, 0.0), (0.05, 0.075), (0.045, 0.075), (0.0, 0.066))
    centre = np.array([x - 0.31, WALL_Y - 0.06, sill])
    plant = NUMBER["plant"]
    leaf = Plain((0.24, 0.48, 0.20), mottle=0.9, scale=0.05)
    leaves = [
        Part(
            Ellipsoid((0.020, 0.026, 0.055)),
            leaf,
            instance=plant,
            position=tuple(centre + vector(0.045 * np.cos(a), 0.02 * np.sin(a), 0.11 + 0.02 * (i % 3))),
            rotation=turn_y(0.55 * np.cos(a)) @ turn_x(-0.4 * np.sin(a)),
        )
        for i, a in enumerate(np.linspace(0.0, 2 * np.pi, 7)[:-1])
    ]
    clay = Part(Lathe(pot), Plain((0.72, 0.40, 0.26)), position=tuple(centre), instance=plant)
    return [view, *bars, clay, *leaves]


def _counter(style: RoomStyle) -> list[Part]:
    """The worktop around the sink, the basin, the tap."""
    left, right = SINK[0] - SINK_HALF[0], SINK[0] + SINK_HALF[0]
    front, back = SINK[1] - SINK_HALF[1], SINK[1] + SINK_HALF[1]
    top = (COUNTER_Z - 0.04, COUNTER_Z)
    steel, dark_steel = Metal(), Metal((0.60, 0.61, 0.63))
    wood = [
        _slab("counter", (-1.35, left), (-0.02, WALL_Y), top, style.counter),
        _slab("counter", (right, RIGHT_X), (-0.02, WALL_Y), top, style.counter),
        _slab("counter", (left, right), (-0.02, front), top, style.counter),
        _slab("counter", (left, right), (back, WALL_Y), top, style.counter),
    ]
    deep = (SINK_FLOOR, COUNTER_Z + 0.003)
    rim = (COUNTER_Z - 0.002, COUNTER_Z + 0.005)
    basin = [
        _slab("sink", (left, right), (front, back), (SINK_FLOOR - 0.01, SINK_FLOOR), dark_steel, gloss=0.5),
        _slab("sink", (left, left + 0.006), (front, back), deep, steel, gloss=0.5),
        _slab("sink", (right - 0.006, right), (front, back), deep, steel, gloss=0.5),
        _slab("sink", (left, right), (front, front + 0.006), deep, steel, gloss=0.5),
        _slab("sink", (left, right), (back - 0.006, back), deep, steel, gloss=0.5),
        _slab("sink", (left - 0.022, right + 0.022), (front - 0.022, front), rim, steel, gloss=0.5),
        _slab("sink", (left - 0.022, right + 0.022), (back, back + 0.05), rim, steel, gloss=0.5),
        _slab("sink", (left - 0.022, left), (front, back), rim, steel, gloss=0.5),
        _slab("sink", (right, right + 0.022), (front, back), rim, steel, gloss=0.5),
        Part(
            Lathe(((0.0, 0.001), (0.024, 0.002), (0.032, 0.0))),
            Rings((0.5, 0.5, 0.52), ((0.0, 0.02, (0.12, 0.12, 0.13)),)),
            position=(SINK[0], SINK[1], SINK_FLOOR),
            own_texture=True,
            instance=NUMBER["sink"],
        ),
    ]
    foot = np.array([SINK[0], back + 0.055, COUNTER_Z])
    bow = arc(0.085, 180.0, 10.0, 8)[:, [1, 0, 2]] * [1.0, 1.0, 1.0]
    neck = np.concatenate([[foot + vector(0.0, 0.0, 0.02)], foot + vector(0.0, -0.085, 0.20) - bow * [0.0, 1.0, -1.0]])
    neck = np.concatenate([neck, [neck[-1] + vector(0.0, 0.0, -0.035)]])
    chrome = Metal((0.84, 0.85, 0.88))
    tap = [
        Part(
            Lathe(((0.030, 0.0), (0.030, 0.02), (0.020, 0.035), (0.0, 0.036))),
            chrome,
            position=tuple(foot),
            gloss=0.9,
            instance=NUMBER["tap"],
        ),
        *tube(neck, 0.0135, chrome, gloss=0.9, instance=NUMBER["tap"]),
        rod(
            foot + vector(0.02, 0.0, 0.055),
            foot + vector(0.085, -0.005, 0.085),
            0.011,
            0.008,
            chrome,
            gloss=0.9,
            instance=NUMBER["tap"],
        ),
    ]
    return [*wood, *basin, *tap]


def _hob() -> list[Part]:
    """A glass hob with four plates and four knobs."""
    hob = NUMBER["hob"]
    glass = Plain((0.11, 0.11, 0.13))
    iron = Rings((0.30, 0.29, 0.29), tuple((r, r + 0.007, (0.20, 0.19, 0.19)) for r in (0.018, 0.036, 0.054, 0.072)))
    parts = [_slab("hob", HOB_X, HOB_Y, (COUNTER_Z, HOB_TOP - 0.004), glass, gloss=0.5)]
    for k, (x, y) in enumerate(PLATES):
        radius = 0.098 if k in (0, 3) else 0.080
        plate = ((radius + 0.006, -0.004), (radius + 0.005, -0.001), (radius, 0.0), (0.0, 0.0))
        rim = Rings((0.62, 0.62, 0.64), ((0.0, radius - 0.002, (0.25, 0.24, 0.24)), *iron.rings))
        parts.append(Part(Lathe(plate), rim, position=(x, y, HOB_TOP), instance=hob, gloss=0.2, own_texture=True))
    for y in (0.11, 0.22, 0.33, 0.44):
        knob = ((0.024, 0.0), (0.022, 0.020), (0.018, 0.024), (0.0, 0.024))
        parts.append(
            Part(Lathe(knob), Metal((0.78, 0.78, 0.80)), position=(1.0, y, HOB_TOP - 0.004), instance=hob, gloss=0.5)
        )
        parts.append(
            _slab(
                "hob",
                (0.996, 1.004),
                (y - 0.004, y + 0.02),
                (HOB_TOP + 0.019, HOB_TOP + 0.022),
                Plain((0.75, 0.12, 0.10)),
            )
        )
    return parts


def _door(
    name: str, x: tuple[float, float], z: tuple[float, float], y: float, colour: Colour, handle: str
) -> list[Part]:
    """A door or drawer front in the plane y, with its handle."""
    gap = 0.004
    centre, half = ((x[0] + x[1]) / 2, (z[0] + z[1]) / 2), ((x[1] - x[0]) / 2 - gap, (z[1] - z[0]) / 2 - gap)
    panel = Panel(colour, centre, half, frame=min(0.05, 0.3 * half[1]))
    front = _slab(name, (x[0] + gap, x[1] - gap), (y - 0.018, y), (z[0] + gap, z[1] - gap), panel)
    steel = Metal((0.82, 0.82, 0.84))
    depth = y - 0.045
    if handle == "bar":
        height, reach = z[1] - 0.05, min(0.08, half[0] * 0.5)
        ends = ((centre[0] - reach, depth, height), (centre[0] + reach, depth, height))
    else:
        side = x[0] + 0.045 if handle == "left" else x[1] - 0.045
        low = z[1] - 0.19 if z[1] < 1.0 else z[0] + 0.05
        ends = ((side, depth, low), (side, depth, low + 0.13))
    feet = [rod((e[0], y - 0.015, e[2]), e, 0.006, None, steel, instance=NUMBER[name], gloss=0.6) for e in ends]
    return [front, rod(*ends, 0.0075, None, steel, instance=NUMBER[name], gloss=0.6), *feet]


def _cupboards(style: RoomStyle) -> list[Part]:
    """Base units with doors, drawers and an oven; wall units and a hood."""
    inside = Plain(shaded(style.door, 0.72))
    parts = [
        _slab("cupboard", (-1.35, RIGHT_X), (0.03, 0.12), (0.10, COUNTER_Z - 0.04), inside),
        _slab("cupboard", (-1.35, RIGHT_X), (0.07, 0.10), (0.0, 0.10), Plain((0.22, 0.21, 0.20))),
    ]
    base = (0.11, COUNTER_Z - 0.05)
    for x, handle in (
        ((-1.35, -0.9), "right"),
        ((-0.9, -0.45), "left"),
        ((-0.45, 0.0), "right"),
        ((1.06, RIGHT_X), "left"),
    ):
        parts += _door("cupboard door", x, base, 0.03, style.door, handle)
    for z in ((0.11, 0.36), (0.36, 0.62), (0.62, 0.87)):
        parts += _door("drawer", (0.0, 0.42), z, 0.03, style.door, "bar")
    oven = Plain((0.16, 0.16, 0.17))
    parts += [
        _slab("oven", (0.425, 1.055), (0.0, 0.03), (0.115, 0.74), oven, gloss=0.4),
        _slab("oven", (0.50, 0.98), (-0.004, 0.0), (0.24, 0.60), Plain((0.06, 0.06, 0.07)), gloss=0.7),
        _slab("oven", (0.425, 1.055), (0.0, 0.03), (0.75, 0.868), Metal((0.74, 0.75, 0.77)), gloss=0.4),
        rod((0.48, -0.04, 0.69), (1.0, -0.04, 0.69), 0.010, None, Metal(), instance=NUMBER["oven"], gloss=0.7),
    ]
    wall_units = (CUPBOARD_Y, WALL_Y)
    parts.append(_slab("cupboard", (-0.12, 0.44), wall_units, (CUPBOARD_Z, 2.15), inside))
    parts.append(_slab("cupboard", (1.06, RIGHT_X), wall_units, (CUPBOARD_Z, 2.15), inside))
    for x, handle in (((-0.12, 0.16), "right"), ((0.16, 0.44), "left"), ((1.06, RIGHT_X), "left")):
        parts += _door("cupboard door", x, (CUPBOARD_Z, 2.15), CUPBOARD_Y, style.door, handle)
    profile = ((-0.30, 0.0), (0.30, 0.0), (0.30, 0.05), (0.14, 0.24), (-0.14, 0.24), (-0.30, 0.05))
    parts.append(
        Part(
            Prism(profile, 0.20),
            Metal((0.70, 0.71, 0.73)),
            position=(0.75, WALL_Y - 0.20, 1.56),
            rotation=turn_x(np.pi / 2),
            instance=NUMBER["hood"],
            gloss=0.4,
        )
    )
    parts.append(_slab("hood", (0.62, 0.88), (WALL_Y - 0.24, WALL_Y), (1.8, 2.5), Metal((0.70, 0.71, 0.73)), gloss=0.4))
    return parts


def _furniture(style: RoomStyle) -> list[Part]:
    """Fridge, shelf with jars, picture, rail with tools, cutting board."""
    white, steel = Plain(style.fridge), Metal()
    parts = [
        _slab("fridge", (LEFT_X + 0.03, -1.36), (0.0, WALL_Y), (0.02, 1.9), white, gloss=0.3),
        _slab("fridge", (LEFT_X + 0.04, -1.365), (-0.05, 0.0), (0.72, 1.9), white, gloss=0.3),
        _slab("fridge", (LEFT_X + 0.04, -1.365), (-0.05, 0.0), (0.04, 0.70), white, gloss=0.3),
        rod((-1.43, -0.085, 0.85), (-1.43, -0.085, 1.30), 0.011, None, steel, instance=NUMBER["fridge"], gloss=0.6),
        rod((-1.43, -0.085, 0.45), (-1.43, -0.085, 0.64), 0.011, None, steel, instance=NUMBER["fridge"], gloss=0.6),
        _slab("fridge", (-1.75, -1.62), (-0.053, -0.05), (1.22, 1.40), Plain((0.95, 0.86, 0.40))),
        _slab("fridge", (-1.60, -1.50), (-0.053, -0.05), (1.02, 1.16), Plain((0.55, 0.75, 0.90))),
        _slab(
            "shelf",
            (RIGHT_X - 0.13, RIGHT_X),
            (-0.25, 0.52),
            (1.22, 1.245),
            Wood(style.board, shaded(style.board, 0.6), 1),
        ),
    ]
    lids = (
        (0.72, 0.16, 0.12),
        (0.20, 0.42, 0.24),
        (0.86, 0.62, 0.16),
        (0.42, 0.26, 0.14),
        (0.90, 0.88, 0.82),
        (0.62, 0.30, 0.16),
    )
    jar = ((0.0, 0.0), (0.036, 0.0), (0.038, 0.08), (0.030, 0.092), (0.032, 0.094), (0.032, 0.115), (0.0, 0.116))
    for k, colour in enumerate(lids):
        parts.append(
            Part(
                Lathe(jar),
                Plain(colour),
                position=(RIGHT_X - 0.065, -0.17 + 0.12 * k, 1.245),
                instance=NUMBER["shelf"],
                gloss=0.5,
            )
        )
    centre, half = (-1.16, 1.62), (0.13, 0.17)
    picture = _slab(
        "picture",
        (centre[0] - half[0], centre[0] + half[0]),
        (WALL_Y - 0.02, WALL_Y),
        (centre[1] - half[1], centre[1] + half[1]),
        Painting(centre, half),
    )
    bar = (-0.06, WALL_Y - 0.035, 1.335)
    rail = [rod(bar, (0.36, *bar[1:]), 0.006, None, steel, instance=NUMBER["rail"], gloss=0.7)]
    for k, (x, colour) in enumerate(
        ((0.02, (0.62, 0.42, 0.24)), (0.13, (0.80, 0.24, 0.18)), (0.24, (0.24, 0.24, 0.26)))
    ):
        stem = Plain(colour)
        rail.append(
            rod((x, WALL_Y - 0.03, 1.325), (x, WALL_Y - 0.03, 1.17), 0.007, None, stem, instance=NUMBER["rail"])
        )
        head = Ellipsoid(((0.026, 0.010, 0.036), (0.034, 0.008, 0.040), (0.030, 0.022, 0.026))[k])
        rail.append(Part(head, stem, position=(x, WALL_Y - 0.03, 1.14), instance=NUMBER["rail"]))
    grain = Wood(style.board, shaded(style.board, 0.66), 0, 0.062, 0.7)
    board = [
        _slab(
            "cutting board",
            (BOARD[0] - BOARD_HALF[0], BOARD[0] + BOARD_HALF[0]),
            (BOARD[1] - BOARD_HALF[1], BOARD[1] + BOARD_HALF[1]),
            (COUNTER_Z + 0.002, BOARD_TOP),
            grain,
        ),
        _slab(
            "cutting board",
            (BOARD[0] + 0.13, BOARD[0] + 0.172),
            (BOARD[1] - 0.05, BOARD[1] + 0.05),
            (BOARD_TOP, BOARD_TOP + 0.0008),
            Plain(shaded(style.board, 0.35)),
        ),
    ]
    return [*parts, picture, *rail, *board]


def build_room(style: RoomStyle | None = None) -> list[Body]:
    """The bodies of the whole room, in the world's frame."""
    style = style or RoomStyle()
    groups = [_shell(style), _window(), _counter(style), _hob(), _cupboards(style), _furniture(style)]
    return [Body(tuple(group), fixed=True) for group in groups]
