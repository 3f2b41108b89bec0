"""What a user means by "where is the mug now?": moved objects in the dynamic layer, at their place, at their time.

Asked are pairs of an object that is moved and a held-out frame (of `val` and `test`), where ground truth says what each
pixel shows and where each object is in every frame of the video.

* **AP near the object** (`object_ap`): the dynamic layer's mask against the object's own pixels, in its neighbourhood;
  pixels of other moved objects are ignored. After the object's first move, and apart from that before it.
* **Found and gone** (`_Asked`): at pixels that truly show the object's place at that time, does its phrase win against
  the phrases of everything else, from several cameras, the actor hidden, and is the point there? And does it no longer
  win where the object rested before, although something is drawn there?
* **Error of the point**: how far outside of the object's true box the point lies that `divff query` answers with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from divff_nerfstudio.data.moved_objects import MovedObject, MovedObjects, moved_objects
from divff_nerfstudio.evaluation.answers import answer_about
from divff_nerfstudio.evaluation.classes import ClassTable
from divff_nerfstudio.evaluation.metrics import average_precision
from divff_nerfstudio.evaluation.places import PlacePixels, Places, Pose, around
from divff_nerfstudio.evaluation.results import ViewScores
from divff_nerfstudio.evaluation.tiles import Picture, as_picture, cell_size, labelled, marked, outlined, row_of
from divff_nerfstudio.evaluation.trained_scene import AskedView, TrainedScene
from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.features.oracle import canonical
from divff_nerfstudio.query import QueryError

KIND = "image"
MIN_SHARE = 1 / 255
"""What the dynamic layer has less of in a pixel than a picture can show, it does not have there."""
LOOKS = 3
"""How many cameras look at a place."""
SOLID = 0.5
"""Accumulation from which on something is drawn at a pixel."""
_CELL_HEIGHT = 128
_TRUTH = (255, 255, 255)


def moved(trained: TrainedScene, queries: Sequence[str] = (), moments: int = 8) -> ViewScores:
    """Asks for every moved object in the held-out frames, see above.

    Args:
        trained: The scene.
        queries: Only the objects that these name or describe; none: all.
        moments: At most twice so many frames, evenly spaced over those of `val` and `test`.

    Returns:
        "moved_object_ap" and "moved_object_ap_before": means over the objects of their means over frames;
        "moved_found", "moved_gone", "moved_found_and_gone" and "moved_found_shown": shares of the pairs of which it can
        be told; "moved_point_error_cm": median over the pairs that have the object in the picture; and the numbers of
        pairs. Without ground truth of moved objects nothing, without features the first two alone.
    """
    things = moved_objects(trained.scene) if trained.truth is not None else None
    if things is None or not things.objects:
        return ViewScores({}, {})
    assert trained.truth is not None
    places = Places(trained.scene, trained.truth, things, trained.trained)
    wanted = [
        thing
        for thing in things.objects
        if len(places.surface(thing)) and (not queries or {thing.instance.name, thing.instance.phrase} & {*queries})
    ]
    phrases = _phrases(trained, things, wanted)
    seen = {*trained.trained}
    held_out = [index for index in range(len(trained.scene)) if index not in seen]
    frames: dict[int, ClassTable] = {}
    figures: dict[str, Picture] = {}
    for index in (held_out[i] for i in evenly_spaced(len(held_out), 2 * moments)) if wanted else ():
        moment = _Moment(trained, places, index, phrases)
        table = {thing.instance.name: scores for thing in wanted if (scores := moment.scores(thing))}
        if table:
            frame_id = int(trained.scene.frame_ids[index])
            frames[frame_id] = table
            figures[f"moved_{frame_id:06d}"] = moment.figure(wanted, table)
    return ViewScores(_totals(frames), _classes(frames), figures, frames)


def object_ap(
    shares: Float[np.ndarray, "height width"],
    mask: Bool[np.ndarray, "height width"],
    ignored: Bool[np.ndarray, "height width"],
) -> float | None:
    """AP of a layer's mask against one object, near it.

    Near it are the pixels of its bounding box and as far again on each side as the box is long. Pixels that the layer
    does not show (`MIN_SHARE`) are found at no threshold, so that a layer that shows nothing has 0 and not the share
    of the object's pixels.

    Args:
        shares: The layer's share of each pixel.
        mask: The object's pixels.
        ignored: Pixels of which nothing is said: those of other moved objects.

    Returns:
        A number in [0, 1]; None if the object has no pixel.
    """
    if not mask.any():
        return None
    near = np.zeros_like(mask)
    near[around(mask)] = True
    shown = near & ~(ignored & ~mask) & (shares >= MIN_SHARE)
    precision = average_precision(shares[shown], mask[shown]) if mask[shown].any() else 0.0
    assert precision is not None
    return precision * float(mask[shown].sum() / mask.sum())


@dataclass
class _Moment:
    """A held-out frame, as the model renders it with and without the actor."""

    trained: TrainedScene
    """The scene."""
    places: Places
    """Where things truly are."""
    index: int
    """Index of the frame."""
    phrases: dict[str, list[str]]
    """By name of the object its phrase, and behind it all that it is held against; those that cannot be asked are not
    among them."""

    @cached_property
    def view(self) -> AskedView:
        """What the frame's camera sees."""
        return self.trained.render(self.trained.camera_at(self.index, self.time))

    @cached_property
    def bare(self) -> AskedView:
        """The same without the actor."""
        return self.trained.render(self.trained.camera_at(self.index, self.time), hide=("actor",))

    @property
    def time(self) -> float:
        """The frame's time, 0 to 1."""
        return float(self.trained.times[self.index])

    @property
    def number(self) -> int:
        """The frame's number in the video."""
        return int(self.trained.scene.video_numbers[self.index])

    def scores(self, thing: MovedObject) -> dict[str, float]:
        """What this frame says of an object; nothing where it has nothing to say."""
        after, seen = thing.has_moved(self.number), self.places.seen(thing, self.index)
        found: dict[str, float] = {}
        if seen:
            shares = self.view.pictures["mask_dynamic"][..., 0].numpy()
            ap = object_ap(shares, self.places.mask(thing, self.index), self._moved_things())
            assert ap is not None
            found["ap" if after else "ap_before"] = ap
        if not after or not self.asks(thing):
            return found
        if seen:
            found["point_error_cm"] = self._point_error(thing)
        return found | self._found_and_gone(thing)

    def asks(self, thing: MovedObject) -> bool:
        """Whether an object is asked for."""
        return thing.instance.name in self.phrases and self.view.embeddings(KIND) is not None

    def _moved_things(self) -> Bool[np.ndarray, "height width"]:
        """Pixels of all objects that are moved at some time."""
        ids = [thing.instance.id for thing in self.places.moved.objects]
        return np.isin(self.places.instances(self.index), ids)

    def _point_error(self, thing: MovedObject) -> float:
        """How far the answer's point lies outside of the object's box, centimetres."""
        phrase = self.phrases[thing.instance.name][0]
        answer = self.view.ask(phrase, KIND)
        outside = self.places.distance(thing, self.places.pose(thing, self.index), np.array(answer.point))
        return self.places.moved.centimetres(float(outside))

    def _found_and_gone(self, thing: MovedObject) -> dict[str, float]:
        """Whether the object is found at its place, and gone from all former ones that can be looked at.

        A pixel *shows* the object if something is drawn there (`SOLID`), the object's phrase is more relevant than
        every other phrase, and the point lies no farther from its true box than the box is long. It is found if so do
        most of the pixels that truly show it, the mean over the cameras. A former place is left if most of its pixels
        have something drawn there for which another phrase is more relevant, wherever along the ray; so a ghost fails,
        and so does a hole. A former place that overlaps the present one is not asked about.
        """
        now = self.places.pose(thing, self.index)
        found: dict[str, float] = {}
        own = self.places.looks(thing, now, self.index, LOOKS)
        if own:
            found["found"] = float(np.mean([self._shown(look, thing, now) for look in own]) > 0.5)
            if own[0].frame == self.index:
                found["found_shown"] = float(self._shown(own[0], thing, now, self.view) > 0.5)
        left = [
            float(np.mean([self._left(look, thing) for look in looks]) > 0.5)
            for pose in thing.former_places(self.number)
            if not self.places.overlap(thing, now, pose)
            and (looks := self.places.looks(thing, pose, self.index, LOOKS))
        ]
        if left:
            found["gone"] = min(left)
        if own and left:
            found["found_and_gone"] = min(found["found"], found["gone"])
        return found

    def _shown(self, look: PlacePixels, thing: MovedObject, pose: Pose, view: AskedView | None = None) -> float:
        """Share of a look's pixels that show an object at a pose."""
        view, pixels = self._looked(look, view)
        points = view.points[pixels].numpy()
        near = self.places.distance(thing, pose, points) <= self.places.length(thing)
        return float((self._solid(view, pixels) & self._wins(view, pixels, thing) & near).mean())

    def _left(self, look: PlacePixels, thing: MovedObject) -> float:
        """Share of a look's pixels that show something else than an object."""
        view, pixels = self._looked(look)
        return float((self._solid(view, pixels) & ~self._wins(view, pixels, thing)).mean())

    def _looked(
        self, look: PlacePixels, view: AskedView | None = None
    ) -> tuple[AskedView, Bool[torch.Tensor, "rows columns"]]:
        """What a look's camera sees at this frame's time, and its pixels."""
        if look.frame != self.index:
            camera = look.camera(self.trained.camera_at(look.frame, self.time))
            return self.trained.render(camera, hide=("actor",)), torch.from_numpy(look.pixels)
        pixels = torch.zeros(self.trained.scene.height, self.trained.scene.width, dtype=torch.bool)
        rows, columns = look.pixels.shape
        pixels[look.top : look.top + rows, look.left : look.left + columns] = torch.from_numpy(look.pixels)
        return view or self.bare, pixels

    def _solid(self, view: AskedView, pixels: torch.Tensor) -> Bool[np.ndarray, "pixels"]:
        """At which pixels something is drawn."""
        return (view.pictures["accumulation"][..., 0][pixels] >= SOLID).numpy()

    def _wins(self, view: AskedView, pixels: torch.Tensor, thing: MovedObject) -> Bool[np.ndarray, "pixels"]:
        """At which pixels the object's phrase is more relevant than every other."""
        features = view.embeddings(KIND)
        assert features is not None
        relevancies = self.trained.query.relevancies(
            features[pixels.to(features.device)], KIND, self.phrases[thing.instance.name], decoded=True
        )
        return (relevancies[:, 0] > relevancies[:, 1:].amax(-1)).cpu().numpy()

    def figure(self, things: Sequence[MovedObject], table: ClassTable) -> Picture:
        """The frame, the dynamic layer's mask, and the answer to each object's phrase, with the object's outline."""
        size = cell_size(self.trained.scene.height, self.trained.scene.width, _CELL_HEIGHT)
        shares = self.view.pictures["mask_dynamic"].numpy()
        target = self.trained.scene.frame(self.index) / 255.0
        cells = [
            labelled(as_picture(target, size), f"frame {self.trained.scene.frame_ids[self.index]}"),
            labelled(outlined(as_picture(shares, size, smooth=False), self._moved_things(), _TRUTH), "dynamic mask"),
        ]
        for thing in things:
            name = thing.instance.name
            if name in table and thing.has_moved(self.number) and self.asks(thing):
                cells.append(labelled(self._answer(thing, size), f"{name}: {_told(table[name])}"))
        return row_of(cells)

    def _answer(self, thing: MovedObject, size: tuple[int, int]) -> Picture:
        """The overlay of an object's phrase, with the object's outline and a ring at the best pixel."""
        phrase = self.phrases[thing.instance.name][0]
        found = self.view.relevancies(KIND, [phrase])[..., 0]
        answer = answer_about(phrase, KIND, found, self.view.pictures, self.view.points)
        picture = outlined(as_picture(answer.overlay, size), self.places.mask(thing, self.index), _TRUTH)
        return marked(picture, (answer.row + 0.5) / found.shape[0], (answer.column + 0.5) / found.shape[1])


def _phrases(trained: TrainedScene, things: MovedObjects, wanted: Sequence[MovedObject]) -> dict[str, list[str]]:
    """What each object is asked by, and behind it what it is held against; nothing where the run cannot be asked.

    An object of which something else has the name or the description is not asked about: nobody could tell them apart.
    """
    if KIND not in trained.query.kinds:
        return {}
    found = {}
    for thing in wanted:
        others = things.phrases_beside(thing)
        own = {canonical(thing.instance.name), canonical(thing.instance.phrase)}
        if others and not own & {canonical(text) for text in others}:
            found[thing.instance.name] = [thing.instance.phrase, *others]
    try:
        for phrases in found.values():
            trained.query.check(KIND, phrases)
    except QueryError as error:
        CONSOLE.print(f"[yellow]{escape(str(error))} Moved objects are not asked for.")
        return {}
    return found


def _told(scores: dict[str, float]) -> str:
    """What a figure says of an object."""
    words = [name if scores[name] else f"not {name}" for name in ("found", "gone") if name in scores]
    if "point_error_cm" in scores:
        words.append(f"{scores['point_error_cm']:.0f} cm off")
    return ", ".join(words) or "not seen"


def _totals(frames: dict[int, ClassTable]) -> dict[str, float]:
    """The scores over all pairs."""
    totals: dict[str, float] = {}
    classes = _classes(frames)
    for key, count in (("ap", "moved_object_pairs"), ("ap_before", "moved_object_pairs_before")):
        if means := [scores[key] for scores in classes.values() if key in scores]:
            totals[f"moved_object_{key}"] = float(np.mean(means))
            totals[count] = float(len(_values(frames, key)))
    for key in ("found", "gone", "found_and_gone", "found_shown"):
        if values := _values(frames, key):
            totals[f"moved_{key}"] = float(np.mean(values))
    if asked := _values(frames, "found_and_gone"):
        totals["moved_asked_pairs"] = float(len(asked))
    if errors := _values(frames, "point_error_cm"):
        totals["moved_point_error_cm"] = float(np.median(errors))
    return totals


def _classes(frames: dict[int, ClassTable]) -> ClassTable:
    """The scores of each object, over the frames that have them: means, and the median of the point's error."""
    classes: ClassTable = {}
    for name in dict.fromkeys(name for table in frames.values() for name in table):
        own = {index: {name: table[name]} for index, table in frames.items() if name in table}
        keys = dict.fromkeys(key for table in own.values() for key in table[name])
        classes[name] = {"frames": len(own)} | {
            key: float((np.median if key == "point_error_cm" else np.mean)(_values(own, key))) for key in keys
        }
    return classes


def _values(frames: dict[int, ClassTable], key: str) -> list[float]:
    return [scores[key] for table in frames.values() for scores in table.values() if key in scores]
