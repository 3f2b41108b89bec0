"""Locks: one process at a time, no other is kept out by what a killed one has left, and Windows has them, too."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from waiting import PATIENCE

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.heartbeat import read_beat
from divff_nerfstudio.locks import lock_path, locked, take_lock

BUSY = DivffError("It is being written: wait.")
HOLD = """
import sys, time
from pathlib import Path
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.locks import take_lock
lock = take_lock(Path(sys.argv[1]), DivffError("busy"))
print("held", flush=True)
time.sleep(600)
"""


def test_another_process_is_kept_out_and_one_that_was_killed_is_not(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "store"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(DivffError, match="wait"), locked(path, BUSY):
            raise AssertionError("two have it")
        other.send_signal(signal.SIGKILL)
    assert lock_path(path).exists()
    with locked(path, BUSY):
        pass
    assert lock_path(path).exists()


def test_who_waits_gets_it(tmp_path: Path) -> None:
    path, said, got = tmp_path / "store", threading.Event(), threading.Event()

    def wait() -> None:
        take_lock(path, BUSY, said.set).release()
        got.set()

    lock = take_lock(path, BUSY)
    thread = threading.Thread(target=wait)
    thread.start()
    assert said.wait(PATIENCE) and not got.is_set()
    lock.release()
    thread.join(PATIENCE)
    assert got.is_set()


def test_who_waits_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch ends programs that give none. Nothing is counted, so that what comes next need not count, either."""
    monkeypatch.setenv("DIVFF_HEARTBEAT", str(tmp_path / "signs.json"))
    monkeypatch.setattr("divff_nerfstudio.locks._SIGN_SECONDS", 0.1)
    lock = take_lock(tmp_path / "store", BUSY)
    thread = threading.Thread(target=lambda: take_lock(tmp_path / "store", BUSY, lambda: None).release())
    thread.start()
    until = time.monotonic() + PATIENCE
    while (sign := read_beat(tmp_path / "signs.json")) is None and time.monotonic() < until:
        time.sleep(0.05)
    lock.release()
    thread.join(PATIENCE)
    assert sign is not None and sign.done == sign.of


def test_a_file_that_goes_with_its_lock_keeps_one_holder(tmp_path: Path) -> None:
    """Many take turns, each removing the file that the others have just opened."""
    path, inside, most = tmp_path / "scene", [], []

    def work() -> None:
        for _ in range(40):
            with locked(path, BUSY, lambda: None, keep=False):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(most) == 160 and set(most) == {1} and list(tmp_path.iterdir()) == []


def test_locks_have_one_room() -> None:
    """Nothing else takes locks, and nothing imports what Windows lacks, except there and behind the question for it."""
    package = Path(__file__).parents[1] / "divff_nerfstudio"
    for path in package.rglob("*.py"):
        found = re.findall(r"^\s*(?:import|from)\s+(fcntl|msvcrt|pwd|grp|filelock)\b", path.read_text("utf-8"), re.M)
        assert found == (["filelock", "fcntl"] if path.name == "locks.py" else []), path


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        take_lock(tmp_path / "file" / "store", BUSY)
