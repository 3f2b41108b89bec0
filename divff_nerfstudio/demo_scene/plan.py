"""The kitchen's plan: where its parts stand, what they are called, and what differs from kitchen to kitchen.

World: x along the counter, y towards the back wall, z up, metres; the counter's front edge is at y = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from divff_nerfstudio.demo_scene.objects import shaded
from divff_nerfstudio.demo_scene.renderer import RoomCorners
from divff_nerfstudio.demo_scene.textures import (
    Colour,
    Stone,
    Texture,
    Wood,
)

WALL_Y, COUNTER_Z, LEFT_X, RIGHT_X = 0.62, 0.92, -2.05, 1.55
CUPBOARD_Z, CUPBOARD_Y = 1.46, 0.30
SINK = (-0.62, 0.27)
SINK_HALF = (0.25, 0.17)
SINK_FLOOR = 0.775
BOARD = (0.02, 0.20)
BOARD_HALF = (0.19, 0.125)
BOARD_TOP = COUNTER_Z + 0.024
HOB_X, HOB_Y = (0.42, 1.06), (0.05, 0.53)
HOB_TOP = COUNTER_Z + 0.012
PLATES = ((0.575, 0.185), (0.835, 0.185), (0.575, 0.415), (0.835, 0.415))

INSTANCES: dict[str, str] = {
    "floor": "the tiled floor",
    "ceiling": "the ceiling",
    "back wall": "the tiled wall behind the counter",
    "left wall": "a wall",
    "right wall": "a wall",
    "counter": "a kitchen counter",
    "sink": "a steel sink",
    "tap": "a tap",
    "hob": "a black hob with four plates",
    "cupboard": "kitchen cupboards",
    "cupboard door": "doors of kitchen cupboards",
    "drawer": "kitchen drawers",
    "oven": "an oven",
    "fridge": "a tall fridge",
    "window": "a window",
    "hood": "an extractor hood",
    "shelf": "a shelf with spice jars",
    "picture": "a framed picture",
    "rail": "a rail with kitchen tools",
    "plant": "a plant in a pot",
    "cutting board": "a wooden cutting board",
}
"""Things of the room and their descriptions; a thing's instance number is its place here, from 1."""

NUMBER = {name: i + 1 for i, name in enumerate(INSTANCES)}
CORNERS = RoomCorners(wall=WALL_Y, counter=COUNTER_Z, cupboard=CUPBOARD_Z, cupboard_front=CUPBOARD_Y - 0.02)


@dataclass(frozen=True)
class RoomStyle:
    """Colours and materials of a kitchen."""

    wall: Colour = (0.88, 0.84, 0.74)
    tile: Colour = (0.90, 0.91, 0.88)
    accent: Colour = (0.36, 0.62, 0.70)
    grout: Colour = (0.66, 0.66, 0.63)
    counter: Texture = field(default_factory=lambda: Wood((0.76, 0.56, 0.36), (0.50, 0.32, 0.17)))
    door: Colour = (0.62, 0.72, 0.62)
    floor: Colour = (0.70, 0.62, 0.52)
    floor_other: Colour = (0.50, 0.38, 0.30)
    fridge: Colour = (0.90, 0.90, 0.92)
    board: Colour = (0.82, 0.66, 0.42)

    @staticmethod
    def sample(rng: np.random.Generator) -> RoomStyle:
        """Another kitchen, with colours at random."""

        def pick(*colours: Colour) -> Colour:
            chosen = np.asarray(colours[rng.integers(len(colours))]) + rng.normal(0.0, 0.025, 3)
            r, g, b = np.clip(chosen, 0.04, 0.97)
            return float(r), float(g), float(b)

        wood = pick((0.76, 0.56, 0.36), (0.60, 0.42, 0.27), (0.84, 0.70, 0.50))
        stone = pick((0.72, 0.70, 0.67), (0.38, 0.38, 0.40), (0.86, 0.84, 0.80))
        counter = Wood(wood, shaded(wood, 0.64)) if rng.random() < 0.6 else Stone(stone, shaded(stone, 0.55))
        return RoomStyle(
            wall=pick((0.88, 0.84, 0.74), (0.74, 0.82, 0.86), (0.86, 0.88, 0.80), (0.90, 0.80, 0.76)),
            tile=pick((0.90, 0.91, 0.88), (0.80, 0.84, 0.86), (0.92, 0.88, 0.78)),
            accent=pick((0.36, 0.62, 0.70), (0.72, 0.44, 0.34), (0.46, 0.58, 0.36), (0.36, 0.42, 0.62)),
            counter=counter,
            door=pick((0.62, 0.72, 0.62), (0.86, 0.85, 0.80), (0.44, 0.54, 0.64), (0.60, 0.44, 0.30)),
            floor=pick((0.70, 0.62, 0.52), (0.72, 0.72, 0.70)),
            floor_other=pick((0.50, 0.38, 0.30), (0.36, 0.38, 0.42)),
            fridge=pick((0.90, 0.90, 0.92), (0.66, 0.67, 0.70), (0.72, 0.34, 0.30)),
            board=pick((0.82, 0.66, 0.42), (0.72, 0.52, 0.32)),
        )
