"""Ctrl-C and SIGTERM, whenever they come: what was trained is saved, a finished run has finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_run
import torch
from waiting import until

from divff_nerfstudio import cli
from divff_nerfstudio.interrupts import TerminatedError, handled, raise_once, run_program
from divff_nerfstudio.trainer import DivFFTrainer

STEPS = 6
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
BOTH = pytest.mark.parametrize("number", list(STATUS))


def press(number: int = signal.SIGINT) -> None:
    signal.raise_signal(number)


def trainer(scene: Path, output: Path, **changes) -> DivFFTrainer:
    config = tiny_run.config(scene, output, STEPS)
    config.pipeline.datamanager.features = "none"
    for key, value in changes.items():
        setattr(config, key, value)
    return tiny_run.trainer_of(config)


def names(made: DivFFTrainer) -> list[str]:
    return sorted(path.name for path in made.checkpoint_dir.glob("*"))


@BOTH
def test_a_step_that_is_under_way_is_saved(tiny_scene, tmp_path, monkeypatch, number, capsys):
    made = trainer(tiny_scene, tmp_path)
    made.setup()
    follow = made.train_iteration
    monkeypatch.setattr(made, "train_iteration", lambda step: (press(number) if step == 2 else None, follow(step))[1])
    with pytest.raises(SystemExit) as ended:
        made.train()
    assert ended.value.code == STATUS[number] and names(made) == ["step-000000002.ckpt"]
    assert "Stopped after step 2" in " ".join(capsys.readouterr().out.split())


@BOTH
def test_while_the_viewer_starts_it_is_not_forgotten(tiny_scene, tmp_path, monkeypatch, number, capsys):
    """nerfstudio takes back the wish to stop just before the first step."""
    made = trainer(tiny_scene, tmp_path)
    made.setup()
    monkeypatch.setattr(made, "_init_viewer_state", lambda: press(number))
    with pytest.raises(SystemExit) as ended:
        made.train()
    assert ended.value.code == STATUS[number] and names(made) == []
    assert "Stopped" not in capsys.readouterr().out


@BOTH
def test_while_things_are_built_even_where_it_is_swallowed(tiny_scene, tmp_path, monkeypatch, number):
    made = trainer(tiny_scene, tmp_path)

    def swallow():
        try:
            press(number)
        except BaseException:
            return

    monkeypatch.setattr(made, "_check_viewer_warnings", swallow)
    usual = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        made.setup()
    assert ended.value.code == STATUS[number] and signal.getsignal(number) is usual
    trainer(tiny_scene, tmp_path).setup()  # its folder is free again


@BOTH
def test_while_a_checkpoint_is_written_it_is_written_to_the_end(tiny_scene, tmp_path, monkeypatch, number):
    made, save = trainer(tiny_scene, tmp_path, steps_per_save=2), torch.save
    made.setup()
    monkeypatch.setattr(
        torch, "save", lambda *words: (save(*words), press(number)) if not names(made) else save(*words)
    )
    with pytest.raises(SystemExit) as ended:
        made.train()
    assert ended.value.code == STATUS[number] and names(made) == ["step-000000002.ckpt"]


@BOTH
@pytest.mark.parametrize("when", ["in the last step", "in the last checkpoint"])
def test_a_finished_run_has_finished(tiny_scene, tmp_path, monkeypatch, number, when, capsys):
    made = trainer(tiny_scene, tmp_path, steps_per_save=1000)
    made.setup()
    follow, save = made.train_iteration, torch.save
    if when == "in the last step":
        last = STEPS - 1
        monkeypatch.setattr(
            made, "train_iteration", lambda step: (press(number) if step == last else 0, follow(step))[1]
        )
    else:
        monkeypatch.setattr(torch, "save", lambda *words: (press(number), save(*words)))
    made.train()
    said = capsys.readouterr().out
    assert names(made) == [f"step-{STEPS - 1:09d}.ckpt"] and "Stopped" not in said and "Training Finished" in said


def test_a_finished_run_whose_viewer_is_closed_ends_well(tiny_scene, tmp_path, monkeypatch):
    made = trainer(tiny_scene, tmp_path)
    made.setup()
    made.viewer_state = SimpleNamespace(training_complete=press, init_scene=lambda **_: None, update_scene=lambda *_: 0)
    made.config.vis = "viewer+tensorboard"
    with pytest.raises(SystemExit) as ended:
        made.train()
    assert ended.value.code == 0 and names(made) == [f"step-{STEPS - 1:09d}.ckpt"]


def test_after_sigterm_another_one_is_ignored_and_ctrl_c_is_not(tiny_scene, tmp_path, monkeypatch):
    made = trainer(tiny_scene, tmp_path)
    made.setup()
    follow = made.train_iteration

    def ended(step: int):
        if step == 1:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
                press(number)
        return follow(step)

    monkeypatch.setattr(made, "train_iteration", ended)
    with pytest.raises(SystemExit) as status:
        made.train()
    assert status.value.code == 143 and names(made) == ["step-000000001.ckpt"]


def test_commands_close_what_is_open(tmp_path, monkeypatch, capsys):
    from divff_nerfstudio.features.extract import ExtractConfig

    closed = []

    def work(self):
        try:
            press(signal.SIGTERM)
        finally:
            press(signal.SIGTERM)  # a second one does not break this off
            closed.append(True)

    monkeypatch.setattr(ExtractConfig, "main", work)
    usual = signal.getsignal(signal.SIGTERM)
    assert cli.main(["extract", "--data", str(tmp_path)]) == 143
    assert closed == [True] and "Terminated." in capsys.readouterr().err and signal.getsignal(signal.SIGTERM) is usual


SLOW = """
import signal, sys, time
from pathlib import Path
def end(number, frame):
    time.sleep(0.2)
    Path(sys.argv[1]).write_text("saved")
    raise SystemExit(143)
signal.signal(signal.SIGTERM, end)
Path(sys.argv[2]).touch()
time.sleep(600)
"""


@pytest.mark.skipif(os.name != "posix", reason="programs are ended in order where there are signals")
def test_a_program_that_was_started_is_ended_and_waited_for(tmp_path):
    saved, began = tmp_path / "saved", tmp_path / "began"

    class Watch(subprocess.Popen):
        def wait(self, timeout=None):
            until(lambda: began.exists() or self.poll() is not None, "the program's start")
            assert began.exists()
            if not saved.exists() and not sent:
                sent.append(1)
                press(signal.SIGTERM)
            return super().wait(timeout)

    sent: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", Watch)
        with pytest.raises(TerminatedError), handled(raise_once()):
            run_program([sys.executable, "-c", SLOW, str(saved), str(began)])
    assert saved.read_text() == "saved"
