"""Recording: camera paths are saved with the panel's state, and the command that films them is told."""

from __future__ import annotations

import contextlib
import shlex
import time
from datetime import datetime
from pathlib import Path

from divff_nerfstudio.viewer.answering import Answering
from divff_nerfstudio.viewer.camera_paths import write_still_path
from divff_nerfstudio.viewer.context import NO_PICTURE, PanelContext
from divff_nerfstudio.viewer.markup import as_code
from divff_nerfstudio.viewer.panel_state import PanelState, panel_state_path
from divff_nerfstudio.viewer.signals import Signal


class Recording:
    """Saves the panel's state beside camera paths.

    Attributes:
        saved: Happens when a path's state has been saved; told the command that films it, as Markdown.
    """

    def __init__(self, context: PanelContext, answering: Answering):
        self._context, self._answering = context, answering
        self._folder = context.viewer.camera_paths
        # Listed here: what is written before the thread runs is new, too.
        self._known = _files(self._folder)
        self.saved: Signal[[str]] = Signal()

    def watch(self) -> None:
        """Saves the state beside each camera path that nerfstudio's tab Render writes; never returns."""
        while True:
            time.sleep(1)
            found = _files(self._folder)
            for path in found:
                if self._known.get(path) != found[path]:
                    self._save_state(path)
            self._known = found

    def save_still(self, client: int | None) -> None:
        """Writes the camera path that stands where a client stands, through all times."""
        view = self._answering.views.latest(client) if client is not None else None
        if view is None:
            self._context.note(NO_PICTURE)
            return
        path = self._folder / f"still-{datetime.now():%Y%m%d-%H%M%S}.json"
        try:
            write_still_path(path, view.camera, self._context.frames.times)
        except OSError as error:
            self._context.note(f"The camera path could not be written: {error}")
            return
        self._save_state(path)
        self._context.note(f"{path} is written; the command that films it stands under Film.")

    def _save_state(self, camera_path: Path) -> None:
        context = self._context
        state = PanelState.of(context.query, context.visibility, context.viewer.output)
        try:
            state.save(panel_state_path(camera_path))
        except OSError as error:
            context.note(f"The panel's state could not be saved beside {camera_path}: {error}")
            return
        config = str(context.viewer.config_file)
        command = ["divff", "video", "--load-config", config, "--camera-path", str(camera_path), "--layout", "other"]
        self.saved(f"Saved with this panel's state. To film it:\n\n{as_code(shlex.join(command))}")


def _files(folder: Path) -> dict[Path, int]:
    """The JSON files of a folder and when they were written."""
    files = {}
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError):
            files[path] = path.stat().st_mtime_ns
    return files
