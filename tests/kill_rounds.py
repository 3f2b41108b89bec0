"""Kills extractions or trainings at random moments, resumes each, and compares what they end with.

A program of its own: everything is imported once, and each attempt is a fork of it, which starts at once. A moment is
a number of calls of functions, Python's and C's, so that it is the same one on machines of any speed, under any load.
``python tests/kill_rounds.py extraction|training KILLS FOLDER`` prints what was done as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import plain_source
import tiny_run
import torch
from conftest import write_tiny_scene
from nerfstudio.scripts import train
from test_feature_encoders import write_scene

from divff_nerfstudio.checkpoints import read_checkpoint
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.features.store import FeatureStore, FeatureStoreError
from divff_nerfstudio.training_folder import checkpoints_in

STEPS, STEPS_PER_SAVE, FRAMES = 14, 2, 12
SOURCES = tuple(f"plain_source:{name}" for name in ("PlainSource", "VideoSource", "CodedSource"))
assert plain_source


@dataclass
class Work:
    """What is killed."""

    run: Callable[[Path], None]
    """Begins it in a folder, or goes on with it."""
    look: Callable[[Path], None]
    """Raises where what can be seen in the folder is not whole."""
    result: Callable[[Path], dict[str, str]]
    """What it has ended with: digests by name."""


def extraction(scene: Path) -> Work:
    """Features of three sources, the last of which trains an autoencoder."""
    write_scene(scene, frames=FRAMES, video=2 * FRAMES + 20)

    def run(folder: Path) -> None:
        ExtractConfig(data=scene, sources=SOURCES, device="cpu", output=folder).main()

    def look(folder: Path) -> None:
        for kind in ("image", "video", "regulariser"):
            try:
                assert len(FeatureStore.open(folder / kind)) == FRAMES
            except FeatureStoreError as error:
                assert "no feature store" in str(error), error

    def result(folder: Path) -> dict[str, str]:
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return Work(run, look, result)


def training(scene: Path) -> Work:
    """A training as ns-train runs it, resumed from its last checkpoint, unless it was killed after the very last."""
    write_tiny_scene(scene)
    tiny_run.write_features(scene, scene.with_name("encoder"))
    last = f"step-{STEPS - 1:09d}.ckpt"

    def run(folder: Path) -> None:
        config = tiny_run.config(scene, folder, STEPS)
        config.steps_per_save, config.steps_per_eval_batch, config.steps_per_eval_image = STEPS_PER_SAVE, 3, 7
        found = checkpoints_in(config.get_checkpoint_dir())
        if found and found[-1].name == last:
            return
        if found:
            config.load_dir = config.get_checkpoint_dir()
        train.main(config)

    def look(folder: Path) -> None:
        for path in folder.rglob("nerfstudio_models/*"):
            assert re.fullmatch(r"step-\d{9}\.ckpt", path.name), path
            assert read_checkpoint(path)["step"] == int(path.stem.removeprefix("step-"))

    def result(folder: Path) -> dict[str, str]:
        (path,) = folder.rglob(last)
        state = read_checkpoint(path)
        tensors = dict(_tensors({name: state[name] for name in ("pipeline", "optimizers", "random")}))
        return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in tensors.items()}

    return Work(run, look, result)


def _tensors(state: object, name: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(state, torch.Tensor):
        return [(name, state)]
    return (
        [found for key, value in state.items() for found in _tensors(value, f"{name}.{key}")]
        if isinstance(state, dict)
        else []
    )


class Calls:
    """Counts what its thread calls, and ends the process the hard way at the last call that is allowed."""

    def __init__(self, most: int | None):
        self.count = 0
        self._most = most

    def __call__(self, *_: object) -> None:
        self.count += 1
        if self.count == self._most:
            os.kill(os.getpid(), signal.SIGKILL)


def attempt(work: Work, folder: Path, log: Path, most: int | None = None) -> bool:
    """Runs the work in a fork, and kills it after so many calls; whether it ended by itself."""
    child = os.fork()
    if not child:
        try:
            with log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            calls = Calls(most)
            sys.setprofile(calls)
            work.run(folder)
            sys.setprofile(None)
            log.with_name("calls").write_text(str(calls.count))
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"status {status}, see\n{log.read_text()[-4000:]}")
    return status == 0


def main(what: str, kills: int, folder: Path, seed: int = 0) -> dict[str, object]:
    """Kills the work so many times, in as many rounds as that takes, each ended in peace."""
    torch.set_num_threads(1)
    moments = random.Random(seed)
    work = {"extraction": extraction, "training": training}[what](folder / "scene")
    log = folder / "log.txt"
    attempt(work, folder / "unbroken", log)
    length = int(log.with_name("calls").read_text())
    expected = work.result(folder / "unbroken")
    done, rounds, differing, most_left = 0, 0, set(), 0
    while done < kills:
        place, rounds, ended = folder / f"round{rounds}", rounds + 1, False
        while not ended and done < kills:
            ended = attempt(work, place, log, moments.randint(1, length * 11 // 10))
            done += not ended
            work.look(place)
            most_left = max(most_left, len(list(place.rglob(".*.tmp*"))))
        if not ended:
            attempt(work, place, log)
        found = work.result(place)
        differing |= {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
        left = [path.name for path in place.rglob("*") if ".tmp" in path.name or path.name == ".image.partial"]
        assert not left, left
    return {
        "what": what,
        "kills": done,
        "rounds": rounds,
        "calls in one unbroken": length,
        "parts compared": len(expected),
        "parts that differ": sorted(differing),
        "most temporary files a kill left": most_left,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
