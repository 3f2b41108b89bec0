"""``divff objects`` and ``divff diary``, and what ``divff query --when`` tells: things over time."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from divff_nerfstudio.atomic import write_text
from divff_nerfstudio.cli.opening import open_run
from divff_nerfstudio.outputs import check_output_folder
from divff_nerfstudio.run_folder import KEPT
from divff_nerfstudio.schema import Label, Positive

if TYPE_CHECKING:
    from divff_nerfstudio.evaluation.door import Scene
    from divff_nerfstudio.objects.diary import Clock, Event
    from divff_nerfstudio.objects.things import Thing


@dataclass
class _OverThings:
    """Options of what looks at all things of a scene."""

    load_config: Path
    """The run's config.yml."""
    output: Optional[Path] = None  # noqa: UP045
    """Folder for the files; by default "things" beside the config.yml."""
    names: tuple[Label, ...] = ()
    """What things may be called; by default common things that the scene is sure to have."""
    fps: Optional[Positive] = None  # noqa: UP045
    """Frames of the video in a second, so that times are told in seconds and not in frames."""
    data: Optional[Path] = None  # noqa: UP045
    """Folder of its scene, if that is no longer where the config.yml says."""

    def folder(self) -> Path:
        """The folder for the files, made if necessary."""
        return check_output_folder(self.output or self.load_config.resolve().parent / KEPT)


@dataclass
class ObjectsConfig(_OverThings):
    """Finds the things of a trained scene: each with where it lies, when it is carried, and when it is out of sight.
    Prints a table, and writes things.json and a contact sheet, things.png."""

    def main(self) -> dict[str, Any]:
        """Runs the command."""
        folder = self.folder()
        scene = _opened(self.load_config, self.data, self.names)
        from divff_nerfstudio.objects.pictures import contact_sheet

        clock = scene.clock(self.fps)
        content = {
            "scene": scene.trained.scene.name,
            "things": [thing_data(thing, clock) for thing in scene.objects()],
        }
        write_json(folder / "things.json", content)
        contact_sheet(folder / "things.png", scene.found, scene.trained.scene.frame)
        sys.stdout.write(table(scene.objects(), clock))
        CONSOLE.print(f"Written: {escape(str(folder / 'things.json'))} and things.png")
        return content


@dataclass
class DiaryConfig(_OverThings):
    """Tells what was moved in a trained scene, when, from where to where. Writes diary.txt, diary.json and a plan of
    the room seen from above with the paths, plan.png."""

    def main(self) -> dict[str, Any]:
        """Runs the command."""
        folder = self.folder()
        scene = _opened(self.load_config, self.data, self.names)
        from divff_nerfstudio.objects.pictures import plan

        clock, events = scene.clock(self.fps), scene.diary()
        content = {"scene": scene.trained.scene.name, "events": [event.data(clock) for event in events]}
        text = told(events, clock)
        write_json(folder / "diary.json", content)
        write_text(folder / "diary.txt", text)
        plan(folder / "plan.png", scene.found, events, clock)
        sys.stdout.write(text)
        CONSOLE.print(f"Written: {escape(str(folder / 'diary.json'))}, diary.txt and plan.png")
        return content


def told(events: list[Event], clock: Clock) -> str:
    """A diary as text, a line for each event."""
    return "".join(f"{event.told(clock)}\n" for event in events) or "Nothing is moved.\n"


def thing_data(thing: Thing, clock: Clock) -> dict[str, Any]:
    """A thing as plain data; points and boxes are world coordinates."""
    best = thing.portrait
    return {
        "thing": thing.number,
        "name": thing.name,
        "frames": len(thing.frames),
        "size": thing.size,
        "events": len(thing.moves),
        "rests": [
            {
                "from": clock.data(rest.first),
                "to": clock.data(rest.last),
                "point": rest.point.tolist(),
                "box": [corner.tolist() for corner in rest.box],
            }
            for rest in thing.rests
        ],
        "spans": [
            {"state": state, "from": clock.data(first), "to": clock.data(last)}
            for state, first, last in thing.spans(len(clock.frame_ids))
        ],
        "portrait": clock.data(best.frame) | {"area": best.area},
        "feature": np.round(thing.feature, 5).tolist(),
    }


def table(things: list[Thing], clock: Clock) -> str:
    """Things as a table in plain text."""
    if not things:
        return "Nothing is found that several frames show.\n"
    lines = [f"{'thing':>5}  {'name':<22}{'frames':>7}{'size':>8}{'events':>7}  rests"]
    for thing in things:
        spans = ", ".join(f"{clock.told(rest.first)} to {clock.told(rest.last)}" for rest in thing.rests)
        counts = f"{len(thing.frames):>7}{thing.size:>8.2f}{len(thing.moves):>7}"
        lines.append(f"{thing.number:>5}  {thing.name[:21]:<22}{counts}  {spans}")
    return "\n".join(lines) + "\n"


def when_data(scene: Scene, phrase: str, clock: Clock, before: float | None = None) -> dict[str, Any]:
    """Where what a phrase means was, at all times.

    Args:
        scene: The scene.
        phrase: The phrase.
        clock: Tells when.
        before: Seconds before which it was last seen; None: not asked.
    """
    meant = scene.meant(phrase)
    content: dict[str, Any] = {
        "query": phrase,
        "in_scene": meant.in_scene,
        "state": meant.standing,
        "things": [thing_data(thing, clock) for thing in meant.things],
        "rival": None if meant.rival is None else {"thing": meant.rival.number, "name": meant.rival.name},
    }
    for entry in content["things"]:
        del entry["feature"]
    if before is not None:
        content["last_seen"] = last_seen(meant.things, clock, before)
    return content


def answers_when(
    load_config: Path, data: Path | None, phrases: Sequence[str], output: Path, fps: float | None, before: float | None
) -> dict[str, Any]:
    """Answers phrases with spans and places, and writes the answers into a folder as when.json.

    Args:
        load_config: The run's config.yml.
        data: Folder of its scene, if that has moved.
        phrases: What is asked.
        output: The folder.
        fps: Frames of the video in a second, if known.
        before: As for `when_data`.
    """
    folder = check_output_folder(output)
    scene = _opened(load_config, data, ())
    clock = scene.clock(fps)
    content = {
        "scene": scene.trained.scene.name,
        "answers": [when_data(scene, phrase, clock, before) for phrase in phrases],
    }
    write_json(folder / "when.json", content)
    return content


def last_seen(things: Sequence[Thing], clock: Clock, before: float) -> dict[str, Any] | None:
    """Where any of some things was last seen before a time.

    Args:
        things: The things.
        clock: Tells when.
        before: Seconds from the scene's first frame; without a video's speed, a time from 0 to 1.
    """
    at = clock.latest_before(before)
    seen = [
        (max(frames), thing) for thing in things if (frames := [f for f in thing.frames if at is not None and f <= at])
    ]
    if not seen:
        return None
    frame, thing = max(seen, key=lambda pair: pair[0])
    return {"thing": thing.number} | clock.data(frame) | {"point": thing.place(frame).tolist()}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes plain data, whole or not at all."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False))


def _opened(load_config: Path, data: Path | None, names: tuple[str, ...]) -> Scene:
    """Opens a run; what nerfstudio says meanwhile goes where messages go."""
    with contextlib.redirect_stdout(sys.stderr):
        scene = open_run(load_config, data)
        scene.names = names
        _ = scene.found
    return scene
