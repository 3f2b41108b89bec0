"""What Slurm is told of jobs, by a program in sbatch's place that keeps what it is given."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from batch_scenes import scene

from divff_nerfstudio.batch import run, submitit_engines
from divff_nerfstudio.batch.engines import EngineError, Handle
from divff_nerfstudio.batch.entries import Needs
from divff_nerfstudio.batch.records import State
from divff_nerfstudio.batch.submitit_engines import SlurmEngine
from divff_nerfstudio.batch.supervision import Limits, Supervisor
from divff_nerfstudio.batch.worker import Job

SBATCH = """#!/bin/sh
number=$(ls '{folder}' | wc -l)
cp "$1" '{folder}'/$number
echo "Submitted batch job $number"
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with what Slurm was given, in its order."""
    pytest.importorskip("submitit")
    folder, programs = tmp_path / "told", tmp_path / "programs"
    folder.mkdir()
    programs.mkdir()
    for name, text in {"sbatch": SBATCH.format(folder=folder), "squeue": "#!/bin/sh\n", "srun": "#!/bin/sh\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return folder


def given(told: Path, option: str) -> list[str | None]:
    """What each submission says of an option; None where it says nothing."""
    texts = [path.read_text() for path in sorted(told.iterdir(), key=lambda path: int(path.name))]
    found = [re.search(rf"^#SBATCH --{option}=(\S+)$", text, re.M) for text in texts]
    return [match[1] if match else None for match in found]


def submitted(engine: SlurmEngine, jobs: Sequence[Job]) -> list[Handle]:
    return [handle for _, handle in engine.submit(jobs)]


def jobs_of(tmp_path: Path, *needs: Needs) -> list[Job]:
    return [Job(f"j{i}", scene(tmp_path, f"s{i}", "well", each), 0) for i, each in enumerate(needs)]


def test_jobs_without_a_card_do_not_get_that_of_those_before_them(tmp_path: Path, told: Path):
    needs = (Needs(cpus=2, gigabytes=3, gpus=1, minutes=30), Needs(cpus=1, gpus=0), Needs())
    submitted(SlurmEngine(tmp_path / "jobs", ["partition=lab"]), jobs_of(tmp_path, *needs))
    assert given(told, "gpus-per-node") == ["1", None, None]
    assert given(told, "mem") == ["3072M", None, None] and given(told, "cpus-per-task") == ["2", "1", None]
    assert given(told, "time") == ["30", "1440", "1440"] and given(told, "partition") == ["lab"] * 3


def test_an_array_is_not_held_back_and_no_longer_than_slurm_takes(tmp_path: Path, told: Path):
    submitted(SlurmEngine(tmp_path / "jobs"), jobs_of(tmp_path, *[Needs()] * 1300))
    assert given(told, "array") == ["0-999%1000", "0-299%300"]


def test_at_once_is_of_all_jobs_together(tmp_path: Path, told: Path):
    """However many arrays they are, as of phases with other needs, or of jobs that are tried again."""
    engine = SlurmEngine(tmp_path / "jobs", at_once=3)
    jobs = jobs_of(tmp_path, Needs(gpus=1), Needs(gpus=1), Needs(gpus=0), Needs(gpus=1))
    handles = submitted(engine, jobs)
    assert len(handles) == 3 and given(told, "array") == ["0-1%2", None]
    assert submitted(engine, jobs[3:]) == []
    assert engine.over(handles[2:]) == {handles[2]}
    assert len(submitted(engine, jobs[3:])) == 1


REFUSAL = """#!/bin/sh
if [ -e '{folder}'.refused ]; then exec '{folder}'.taking "$1"; fi
touch '{folder}'.refused
echo 'sbatch: error: {said}' >&2
exit 1
"""


def refusing(told: Path, text: str) -> None:
    """Has sbatch refuse, or do what a script says."""
    program = told.parent / "programs" / "sbatch"
    program.rename(f"{told}.taking")
    program.write_text(text)
    program.chmod(0o755)


class Clock:
    """A clock that is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        monkeypatch.setattr(submitit_engines.time, "monotonic", lambda: self.now)


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        ("Batch job submission failed: Socket timed out on send/recv operation", True),
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", True),
        ("QOSMaxSubmitJobPerUserLimit", True),
        ("Batch job submission failed: Invalid partition name specified", False),
        ("invalid partition specified: contact", False),
    ],
)
def test_jobs_wait_where_slurm_does_not_take_them_for_a_while(
    tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch, said: str, passes: bool
):
    """A name of the user's that holds a word of Slurm's is none of its phrases."""
    refusing(told, REFUSAL.format(folder=told, said=said))
    clock, heard = Clock(monkeypatch), []
    engine, jobs = SlurmEngine(tmp_path / "jobs", say=heard.append), jobs_of(tmp_path, Needs())
    if not passes:
        with pytest.raises(EngineError, match=r"Slurm refuses the jobs .*mend the needs"):
            submitted(engine, jobs)
        return
    assert submitted(engine, jobs) == [] and submitted(engine, jobs) == [] and list(told.iterdir()) == []
    assert list((tmp_path / "jobs").iterdir()) == [] and len(heard) == 1 and said in heard[0]
    clock.now += 31
    assert len(submitted(engine, jobs)) == 1


def test_a_refusal_that_does_not_pass_is_told(tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(submitit_engines, "_PASSED_AFTER", 0.0)
    refusing(told, "#!/bin/sh\necho 'Socket timed out' >&2\nexit 1\n")
    with pytest.raises(EngineError, match="Socket timed out"):
        submitted(SlurmEngine(tmp_path / "jobs"), jobs_of(tmp_path, Needs()))


LIMIT = """#!/bin/sh
echo x >> '{folder}'.asked
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
if [ $(( $(cat '{folder}'.handed) + ${{last:-0}} + 1 )) -gt 3 ]; then
    echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2
    exit 1
fi
echo $(( $(cat '{folder}'.handed) + ${{last:-0}} + 1 )) > '{folder}'.handed
exec '{folder}'.taking "$1"
"""
"""Takes three jobs at a time."""


def test_a_limit_of_jobs_is_filled_and_waited_for(tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch):
    """However long that takes while jobs are handed over: giving up would end these."""
    clock, heard, handed = Clock(monkeypatch), [], Path(f"{told}.handed")
    refusing(told, LIMIT.format(folder=told))
    handed.write_text("0")
    engine, jobs = SlurmEngine(tmp_path / "jobs", say=heard.append), jobs_of(tmp_path, *[Needs()] * 8)
    handles = submitted(engine, jobs)
    assert len(handles) == 3 and len(heard) == 1 and "AssocMaxSubmitJobLimit" in heard[0] and "--at-once" in heard[0]
    asked = Path(f"{told}.asked").read_text()
    assert submitted(engine, jobs[3:]) == [] and Path(f"{told}.asked").read_text() == asked
    clock.now += 10_000
    assert submitted(engine, jobs[3:]) == []
    clock.now += 10_000
    assert submitted(engine, jobs[3:]) == [] and len(heard) == 1
    assert engine.over(handles) == set(handles)
    handed.write_text("0")
    clock.now += 31
    assert len(submitted(engine, jobs[3:])) == 3


def test_a_limit_that_others_fill_is_told_with_what_to_do(tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    refusing(told, LIMIT.format(folder=told))
    Path(f"{told}.handed").write_text("3")
    engine, jobs = SlurmEngine(tmp_path / "jobs"), jobs_of(tmp_path, Needs())
    assert submitted(engine, jobs) == []
    clock.now += 3601
    with pytest.raises(EngineError, match="--at-once"):
        submitted(engine, jobs)


def test_what_was_handed_over_at_a_ctrl_c_is_ended(tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch):
    """All of it, also where the Ctrl-C comes while Slurm is asked."""
    lines = (
        f"#!{sys.executable}",
        "import os, signal, subprocess, sys",
        "for process in (os.getppid(), os.getpid()): os.kill(process, signal.SIGINT)",
        f"sys.exit(subprocess.call(['{told}.taking', sys.argv[1]]))",
    )
    refusing(told, "\n".join(lines))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    ended: list[str] = []
    engine = SlurmEngine(tmp_path / "jobs")
    monkeypatch.setattr(engine, "end", ended.append)
    try:
        with pytest.raises(KeyboardInterrupt):
            Supervisor([job.plan for job in jobs_of(tmp_path, *[Needs()] * 3)], engine, Limits(poll=0.1)).run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(ended) == 3 and given(told, "array") == ["0-2%3"]


def test_what_slurm_is_told_goes_before_what_is_usual(tmp_path: Path, told: Path):
    engine = SlurmEngine(tmp_path / "jobs", ["array_parallelism=2", "job-name=mine"])
    assert len(submitted(engine, jobs_of(tmp_path, *[Needs()] * 3))) == 3
    assert given(told, "array") == ["0-2%2"] and given(told, "job-name") == ["mine"]
    with pytest.raises(EngineError, match=r"--slurm is not as Slurm takes it"):
        submitted(SlurmEngine(tmp_path / "jobs", ["array_parallelism=many"]), jobs_of(tmp_path, Needs()))
    for option, instead in {
        "time": "minutes",
        "mem": "gigabytes",
        "cpus-per-task": "cpus",
        "gpus_per_node": "gpus",
    }.items():
        with pytest.raises(EngineError, match=f"give --{instead} instead"):
            SlurmEngine(tmp_path / "jobs", [f"{option}=1"])


def test_the_time_to_save_is_slurms(tmp_path: Path, told: Path, capsys: pytest.CaptureFixture[str]):
    engine, program = SlurmEngine(tmp_path / "jobs"), tmp_path / "programs" / "scontrol"
    program.write_text("#!/bin/sh\necho 'KillOnBadExit           = 0'\necho 'KillWait                = 45 sec'\n")
    program.chmod(0o755)
    run._tell_end(2, 60, engine)
    run._tell("a", State(standing="running"), "slurm")
    said = capsys.readouterr().out
    assert "they get 45 s" in said and "a: handed over" in said
