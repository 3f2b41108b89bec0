"""Which things a view shows, from any place and at any time: by where its pixels' points lie, and their features."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from divff_nerfstudio.objects.grouping import PLACE_SPEAKS
from divff_nerfstudio.objects.things import Things
from divff_nerfstudio.objects.whereabouts import whereabouts

_MAX_POINTS = 1024
_NEIGHBOURS = 8
_FEATURES_SPEAK = 4.0
_REACH = 2.0
_LOOK_PIXELS = 2.0
_PAIRS = 8192


class Recognition:
    """Recognises things in views of one moment.

    Args:
        things: All things.
        frame: Index of the frame that is next in time: it says where things are.
    """

    def __init__(self, things: Things, frame: int):
        self._things = things
        lying = [_thinned(whereabouts(thing, frame).points) for thing in things.things]
        self._owners = np.repeat(np.arange(len(lying)), [len(points) for points in lying])
        self._tree = KDTree(np.concatenate(lying)) if len(self._owners) else None
        # What is known of a thing ends a pixel of the looks before its edge.
        pixel = things.depth / float(things.cameras[frame].intrinsics[1, 1])
        self._reach = max(_REACH * things.reach, _LOOK_PIXELS * pixel)

    def numbers(
        self, points: Float[np.ndarray, "*bs 3"], features: Float[np.ndarray, "*bs dim"] | None
    ) -> Int[np.ndarray, "*bs"]:
        """The number of the thing that each pixel shows; 0: none.

        Of the things that lie near a pixel's point, it is the one for which place and feature together speak most.

        Args:
            points: Where the pixels' rays meet the scene, world coordinates.
            features: The pixels' features, of unit length, of the kind that things were found by; None: places alone
                say it.
        """
        shape = points.shape[:-1]
        found = np.zeros(int(np.prod(shape)), np.int64)
        if self._tree is None or not len(found):
            return found.reshape(shape)
        far, near = self._tree.query(
            points.reshape(-1, 3), k=min(_NEIGHBOURS, self._tree.n), distance_upper_bound=self._reach
        )
        far, near = far.reshape(len(found), -1), near.reshape(len(found), -1)
        here = np.isfinite(far)
        pixels, owners = np.nonzero(here)[0], self._owners[near[here]]
        speaks = PLACE_SPEAKS * (1 - far[here] / self._reach)
        if features is not None:
            speaks = speaks + self._alike(features.reshape(len(found), -1), pixels, owners)
        order = np.lexsort((-speaks, pixels))
        best = order[np.unique(pixels[order], return_index=True)[1]]
        best = best[speaks[best] > 0]
        numbers = np.array([thing.number for thing in self._things.things])
        found[pixels[best]] = numbers[owners[best]]
        return found.reshape(shape)

    def _alike(
        self, features: Float[np.ndarray, "n dim"], pixels: Int[np.ndarray, "pairs"], owners: Int[np.ndarray, "pairs"]
    ) -> Float[np.ndarray, "pairs"]:
        """What features of pixels say for things beside them: of each pair, some thousand at a time."""
        likeness = self._things.likeness
        assert likeness is not None
        products = np.zeros(len(pixels))
        for start in range(0, len(pixels), _PAIRS):
            part = slice(start, start + _PAIRS)
            centred = likeness.centred(features[pixels[part]].astype(np.float64))
            products[part] = np.einsum("pd,pd->p", centred, self._things.centred[owners[part]])
        return _FEATURES_SPEAK * likeness.graded(products)


def _thinned(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "m 3"]:
    """Evenly chosen points, not too many."""
    return points[:: max(1, -(-len(points) // _MAX_POINTS))]
