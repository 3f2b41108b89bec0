"""What Slurm is told of jobs, by a program in sbatch's place that keeps what it is given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from batch_scenes import scene

from divff_nerfstudio.batch.engines import EngineError, Handle
from divff_nerfstudio.batch.entries import Needs
from divff_nerfstudio.batch.submitit_engines import SlurmEngine
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


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        ("Batch job submission failed: Socket timed out on send/recv operation", True),
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", True),
        ("QOSMaxSubmitJobPerUserLimit", True),
        ("Batch job submission failed: Invalid partition name specified", False),
    ],
)
def test_jobs_wait_where_slurm_does_not_take_them_for_a_while(tmp_path: Path, told: Path, said: str, passes: bool):
    program = tmp_path / "programs" / "sbatch"
    program.rename(f"{told}.taking")
    program.write_text(REFUSAL.format(folder=told, said=said))
    program.chmod(0o755)
    engine, jobs = SlurmEngine(tmp_path / "jobs"), jobs_of(tmp_path, Needs())
    if not passes:
        with pytest.raises(EngineError, match=r"Slurm refuses the jobs .*mend the needs"):
            submitted(engine, jobs)
        return
    assert submitted(engine, jobs) == [] and len(submitted(engine, jobs)) == 1


def test_a_refusal_that_does_not_pass_is_told(tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("divff_nerfstudio.batch.submitit_engines._PASSED_AFTER", 0.0)
    (tmp_path / "programs" / "sbatch").write_text("#!/bin/sh\necho 'Socket timed out' >&2\nexit 1\n")
    with pytest.raises(EngineError, match="Socket timed out"):
        submitted(SlurmEngine(tmp_path / "jobs"), jobs_of(tmp_path, Needs()))
