"""Full disks: one sentence that names the file, nothing half-written, and what was there before is as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
from nerfstudio.utils import writer
from PIL import Image

from divff_nerfstudio import cli
from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.curves import PatientWriter
from divff_nerfstudio.errors import DiskError, DivffError
from divff_nerfstudio.evaluation.options import EvaluationError
from divff_nerfstudio.evaluation.videos import write_video
from divff_nerfstudio.faults import mendable
from divff_nerfstudio.trainer import TrainingError

NOISE = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
WRITERS = {
    "text": (".txt", lambda path: path.write_text("a" * 400_000)),
    "array": (".npy", lambda path: np.save(path, np.zeros(100_000))),
    "archive": (".npz", lambda path: np.savez_compressed(path, a=NOISE, b=NOISE[::-1])),
    "picture": (".png", lambda path: Image.fromarray(NOISE).save(path)),
    "photo": (".jpg", lambda path: Image.fromarray(NOISE).save(path, quality=100)),
    "weights": (".ckpt", lambda path: torch.save({"a": torch.zeros(100_000)}, path)),
    "folder": ("", lambda path: (path.mkdir(), np.save(path / "a.npy", np.zeros(100_000)))),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_is_told(small_disk: Path, kind: str) -> None:
    """Some of their writers forget that it was the disk."""
    suffix, write = WRITERS[kind]
    path = small_disk / f"out{suffix}"
    if suffix:
        path.write_text("before")
    with pytest.raises(DiskError, match=r"No space left on device.*make room") as error, atomic_path(path) as temporary:
        write(temporary)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and error.value.errno == errno.ENOSPC
    assert isinstance(error.value, DivffError) and isinstance(error.value, OSError)
    assert [each.name for each in small_disk.iterdir()] == ([path.name] if suffix else [])
    assert not suffix or path.read_text() == "before"


def test_other_faults_of_what_writes_stay_what_they_are(tmp_path: Path) -> None:
    for fault in (RuntimeError("a fault"), OSError("another"), FileNotFoundError(2, "none", "elsewhere")):
        with pytest.raises(type(fault), match=str(fault.args[-1])) as error, atomic_path(tmp_path / "a.bin") as path:
            path.write_bytes(b"half")
            raise fault
        assert error.value is fault and list(tmp_path.iterdir()) == []


def test_a_video_is_whole_or_not_there(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DiskError, match="No space left on device"):
        write_video(small_disk / "v.mp4", [NOISE] * 12)
    assert list(small_disk.iterdir()) == []
    program = small_disk / "ffmpeg"
    program.write_text("#!/bin/sh\ncat > /dev/null\necho 'the codec is missing' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(EvaluationError, match=r"v\.mp4 could not be written \(.*the codec is missing"):
        write_video(small_disk / "v.mp4", [NOISE[:32, :32]] * 3)
    program.write_text("#!/bin/sh\ncat > /dev/null\nexit 0\n")
    with pytest.raises(EvaluationError, match="0 of 3 pictures"):
        write_video(small_disk / "v.mp4", [NOISE[:32, :32]] * 3)
    assert [path.name for path in small_disk.iterdir()] == ["ffmpeg"]


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


COMMANDS = {
    "demo": [],
    "demo-scene": ["OUT"],
    "download": ["epic-diff", "--root", "OUT"],
    "extract": ["--data", "OUT"],
    "import": ["file.ckpt", "--scene", "OUT", "--output", "OUT/run"],
    "evaluate": ["--load-config", "OUT/config.yml"],
    "query": ["--load-config", "OUT/config.yml", "--text", "cup", "--output", "OUT"],
    "video": ["--load-config", "OUT/config.yml"],
    "export": ["--load-config", "OUT/config.yml"],
    "view": ["--load-config", "OUT/config.yml"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_with_a_sentence(tmp_path, monkeypatch, capsys, command):
    """Wherever in it the disk is found to be full, even where nothing says which file it was."""
    module, _, name = cli.COMMANDS[command][0].partition(":")
    kind = getattr(__import__(module, fromlist=[name]), name)
    if not hasattr(kind, "main"):
        pytest.skip(f"{command} has commands below it")
    monkeypatch.setattr(kind, "main", full)
    words = [word.replace("OUT", str(tmp_path)) for word in COMMANDS[command]]
    assert cli.main([command, *words]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "No space left on device" in said and "make room" in said and "Traceback" not in said


def test_what_is_told_of_errors_of_the_system():
    assert "make room" in str(mendable(OSError(errno.EDQUOT, "Quota exceeded", "x.bin")))
    assert "x.bin cannot be used" in str(mendable(PermissionError(errno.EACCES, "denied", "x.bin")))
    assert mendable(ValueError("a fault")) is None


@pytest.fixture
def training(tiny_scene: Path, tmp_path: Path):
    config = tiny_run.config(tiny_scene, tmp_path / "run", 8)
    config.pipeline.datamanager.features, config.steps_per_save = "none", 2
    trainer = tiny_run.trainer_of(config)
    trainer.setup()
    return trainer


def test_a_training_keeps_its_last_checkpoint(training, monkeypatch):
    save = torch.save

    def filled(state: dict, path: Path) -> None:
        save(state, path)
        if state["step"] > 2:
            full()

    monkeypatch.setattr(torch, "save", filled)
    with pytest.raises(
        TrainingError, match=r"step-000000004\.ckpt cannot be written \(No space left.*make room"
    ) as error:
        training.train()
    assert "--load-dir" in str(error.value)
    assert [path.name for path in training.base_dir.rglob("*step-*")] == ["step-000000002.ckpt"]


def test_a_training_goes_on_without_its_curves(training, monkeypatch, capsys):
    (patient,) = (each for each in writer.EVENT_WRITERS if isinstance(each, PatientWriter))
    monkeypatch.setattr(patient._behind, "write_scalar", full)
    training.train()
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("The curves of this training end here") == 1
    assert [path.name for path in training.checkpoint_dir.iterdir()] == ["step-000000007.ckpt"]
