"""Opens trained runs for commands: what needs no model is looked at first, and what takes long is announced.

The packages that render and answer take half a minute to import on a slow machine; they are imported here and behind
it, once it is known that there is something to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.faults import say, shown
from divff_nerfstudio.run_folder import RunError, scene_named

if TYPE_CHECKING:
    from divff_nerfstudio.evaluation.door import Scene
    from divff_nerfstudio.evaluation.runs import Run
    from divff_nerfstudio.evaluation.trained_scene import TrainedScene


def look(load_config: Path, data: Path | None = None, frames: Sequence[int | None] = ()) -> None:
    """Finds out whether a run can be opened, as far as that needs no model, and says that it is being opened.

    Args:
        load_config: The run's config.yml.
        data: Folder of its scene, if that has moved.
        frames: Ids of frames that will be asked for; None among them are left out.

    Raises:
        RunError: If there is no such file.
        SceneError: If the scene has no such frame, or faults.
    """
    if not load_config.is_file():
        raise RunError(f"{load_config} is no file: give the config.yml that ns-train wrote into the run's folder.")
    asked = [frame for frame in frames if frame is not None]
    root = (scene_named(load_config) if data is None else data) if asked else None
    if root is not None and (root / "meta.json").is_file():
        scene = load_scene(root, check_frames=False)
        for frame in asked:
            scene.index_of(frame)
    say(f"Opening {escape(shown(str(load_config)))} ...")


def load_run(load_config: Path, data: Path | None = None) -> Run:
    """As `runs.load_run`, after a `look`."""
    look(load_config, data)
    from divff_nerfstudio.evaluation import runs

    return runs.load_run(load_config, data)


def open_scene(load_config: Path, data: Path | None = None, frames: Sequence[int | None] = ()) -> TrainedScene:
    """As `runs.open_scene`, after a `look`."""
    look(load_config, data, frames)
    from divff_nerfstudio.evaluation import runs

    return runs.open_scene(load_config, data)


def open_run(load_config: Path, data: Path | None = None) -> Scene:
    """As `door.open_run`, after a `look`."""
    look(load_config, data)
    from divff_nerfstudio.evaluation import door

    return door.open_run(load_config, data)
