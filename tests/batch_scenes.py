"""Scenes of a batch whose commands take no time, and go wrong in every way that commands do."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from divff_nerfstudio.batch.entries import Needs
from divff_nerfstudio.batch.plans import Plan, Step
from divff_nerfstudio.heartbeat import beat

FAULTS = ("well", "well", "well", "broken", "empty", "killed", "lost", "hanging")
"""What becomes of eight scenes: three go well, one is broken, one ends well and leaves nothing, one's command and one's
job are killed at the first attempt, one hangs at the first attempt."""
OFTEN = {"killed": 2, "lost": 2, "hanging": 2}
"""How often those are started that are not started once."""


@dataclass(frozen=True)
class IsWritten:
    """Whether a command has written what it should."""

    path: Path

    def __call__(self) -> str | None:
        """What is wrong with it."""
        whole = self.path.is_file() and self.path.read_text("utf-8") == "whole"
        return None if whole else f"{self.path} is not there or not whole"


def scene(folder: Path, name: str, kind: str, needs: Needs | None = None, steps: int = 2) -> Plan:
    """A scene whose first step goes as `kind` says, and the others well."""
    made = []
    for number in range(steps):
        path = folder / name / f"result{number}"
        made.append(
            Step(
                name=f"step{number}",
                kind="train",
                purpose="a test",
                module="batch_scenes",
                words=(kind if number == 0 else "well", str(path)),
                leaves=path,
                check=IsWritten(path),
                needs=needs or Needs(cpus=1),
                after=tuple(step.name for step in made),
            )
        )
    return Plan(name, folder / name, folder / "scenes" / name, folder, tuple(made))


def eight(folder: Path) -> list[Plan]:
    """Scenes of all kinds."""
    return [scene(folder, f"{number}-{kind}", kind) for number, kind in enumerate(FAULTS)]


def main(kind: str, result: str) -> None:
    """The command."""
    path = Path(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f"{path.name}.starts").open("a") as starts:
        starts.write("x")
        first = starts.tell() == 1
    path.with_suffix(".threads").write_text(os.environ.get("OMP_NUM_THREADS", "as many as there are cores"))
    beat(1, 2, 0.5)
    if kind == "broken":
        print("Error: The scene's frame 7 is broken: copy it anew.")
        sys.exit(1)
    if kind == "memory":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
        sys.exit(1)
    if kind == "killed" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "lost" and first:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    if kind == "hanging" and first:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if kind == "slow":
        signal.signal(signal.SIGTERM, lambda *_: (path.with_suffix(".saved").write_text("saved"), sys.exit(143)))
        (path.parent / "began").write_text("")
        while not (path.parent / "go-on").exists():
            time.sleep(0.05)
    if kind == "late":  # its work is done, and then something goes wrong
        path.write_text("whole")
        sys.exit(3)
    if kind != "empty":
        path.write_text("whole")


def starts(plan: Plan) -> int:
    """How often the first step of a scene was started."""
    return len(plan.steps[0].leaves.with_name("result0.starts").read_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
