"""The folder of a training: one training at a time writes there, and nothing that was trained before is lost."""

from __future__ import annotations

import contextlib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from divff_nerfstudio.atomic import remove_unfinished
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.locks import Lock, take_lock


class TrainingError(DivffError):
    """Training cannot start or go on."""


@dataclass
class RunFolder:
    """A folder that this process alone trains into."""

    path: Path
    """The folder."""
    lock: Lock
    """Keeps other trainings out."""
    kept: frozenset[Path]
    """Checkpoints of an earlier training that kept all of its checkpoints: they stay."""
    resumed: bool
    """Whether there are checkpoints, the last of which is gone on from."""
    written: list[Path] = field(default_factory=list)
    """What this process has written there before the first step."""

    def release(self) -> None:
        """Lets other trainings in."""
        self.lock.release()

    def abandon(self) -> None:
        """Takes back what was written before a training that did not begin, and lets other trainings in: a folder
        without a checkpoint opens nowhere."""
        lock = [] if sys.platform == "win32" else [Path(self.lock.lock_file)]  # which removes no open file
        try:
            with contextlib.suppress(OSError):  # why it has not begun is what counts
                for path in [] if self.resumed else [*self.written, *lock]:
                    path.unlink(missing_ok=True)
        finally:
            self.release()
        with contextlib.suppress(OSError):  # something else lies there
            self.path.rmdir()


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by step."""
    found = {int(match[1]): path for path in folder.glob("step-*.ckpt") if (match := _STEP.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


_STEP = re.compile(r"step-(\d+)\.ckpt")


def step_in_name(path: Path) -> int | None:
    """The step that a checkpoint's name tells, if it tells one."""
    match = _STEP.fullmatch(path.name)
    return None if match is None else int(match[1])


def steps_of(run: Path) -> int | None:
    """How many steps a run is to have, by the text of its configuration, which is not opened for that; None: untold."""
    config = run / "config.yml"
    found = re.search(r"^max_num_iterations: (\d+)$", config.read_text("utf-8") if config.is_file() else "", re.M)
    return None if found is None else int(found[1])


def checkpoint_to_load(load_checkpoint: Path | None, load_dir: Path | None, load_step: int | None) -> Path | None:
    """The checkpoint that a training begins with, as nerfstudio's options of these names tell; None: with none.

    Raises:
        TrainingError: If it does not exist, or one of the options would say nothing.
    """
    if load_dir is None and load_step is not None:
        raise TrainingError(f"--load-step {load_step} says nothing without a folder: give --load-dir, too.")
    if load_dir is not None and load_checkpoint is not None:
        raise TrainingError("--load-dir and --load-checkpoint name one checkpoint each: leave one of them out.")
    if load_checkpoint is not None:
        path = load_checkpoint
    elif load_dir is None:
        return None
    elif load_step is not None:
        path = load_dir / f"step-{load_step:09d}.ckpt"
    else:
        found = checkpoints_in(load_dir)
        if not found:
            raise TrainingError(f"{load_dir} holds no checkpoint: give the folder with step-*.ckpt files.")
        path = found[-1]
    if not path.is_file():
        raise TrainingError(f"The checkpoint {path} does not exist: see which ones its folder holds.")
    return path


def claim(folder: Path, checkpoints: Path, begins_with: Path | None) -> RunFolder:
    """Takes a folder for a training of this process, and removes what killed trainings have begun to write there.

    Args:
        folder: Folder of the run.
        checkpoints: Folder of its checkpoints.
        begins_with: Checkpoint that the training begins with.

    Raises:
        TrainingError: If another process trains into it, or checkpoints in it would be lost.
        OSError: If it cannot be written to.
    """
    busy = TrainingError(f"Another training writes to {folder}: wait for it, or give another --timestamp.")
    lock = take_lock(checkpoints, busy)
    try:
        found = checkpoints_in(checkpoints)
        if found:
            _refuse_loss(checkpoints, found[-1], begins_with)
        config = folder / "config.yml"
        kept_all = config.is_file() and re.search(
            r"^save_only_latest_checkpoint: false$", config.read_text("utf-8", errors="replace"), re.M
        )
        remove_unfinished(folder, "config.*")
        remove_unfinished(folder, "step-*")
        for path in checkpoints_in(folder) if folder != checkpoints else ():
            path.unlink()
    except BaseException:
        lock.release()
        raise
    return RunFolder(folder, lock, frozenset(found) if kept_all else frozenset(), bool(found))


def _refuse_loss(checkpoints: Path, last: Path, begins_with: Path | None) -> None:
    """Refuses a training whose checkpoints would take the place of those that are there."""
    if begins_with is None or begins_with.resolve().parent != checkpoints.resolve():
        raise TrainingError(
            f"{checkpoints} holds what was trained, up to {last.name}: go on with it by --load-dir {checkpoints}, or "
            "train into another folder by another --timestamp."
        )
    if begins_with.resolve() != last.resolve():
        raise TrainingError(
            f"{checkpoints} holds what was trained behind {begins_with.name}, up to {last.name}, which would be lost: "
            "leave --load-step out, or go on into another folder by another --timestamp."
        )
