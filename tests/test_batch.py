"""Batches: eight scenes by each engine, one broken, one killed, one that hangs; and what is kept of what was ended."""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import slurm_node
from batch_scenes import FAULTS, OFTEN, eight, scene, starts

from divff_nerfstudio.batch import engines, processes, run
from divff_nerfstudio.batch.contents import TrainingIsWhole
from divff_nerfstudio.batch.engines import Engine, EngineError, Room, this_machine
from divff_nerfstudio.batch.entries import Needs
from divff_nerfstudio.batch.processes import Ended, Patience, watch
from divff_nerfstudio.batch.records import HEARTBEAT, LOG, Heartbeat, State, read_record
from divff_nerfstudio.batch.run import BatchOptions, run_batch
from divff_nerfstudio.batch.status import batch_status
from divff_nerfstudio.batch.submitit_engines import LocalEngine
from divff_nerfstudio.batch.supervision import Limits, Supervisor
from divff_nerfstudio.batch.worker import Job, StepError, Worker, lack_of_memory, run_job
from divff_nerfstudio.convert.names import ConvertError
from divff_nerfstudio.convert.structure import Command
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.locks import locked

LIMITS = Limits(attempts=2, patience=Patience(silence=6, grace=1), poll=0.1)
TESTS = Path(__file__).parent
RUN = "import pickle, sys; from divff_nerfstudio.batch.worker import run_job; run_job(pickle.load(sys.stdin.buffer))"


@pytest.fixture(autouse=True)
def found_by_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the jobs' processes import what stands beside this file."""
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Engine]:
    pytest.importorskip("submitit")
    engine = LocalEngine(tmp_path / "jobs", Room(4, 4.0, ()))
    yield engine
    engine.close()


def check_eight(folder: Path, engine: Engine) -> None:
    """Runs eight scenes and looks at what has become of each."""
    plans = eight(folder)
    states = Supervisor(plans, engine, LIMITS).run()
    failed = {name: state.sentence for name, state in states.items() if state.standing == "failed"}
    assert failed.keys() == {"3-broken", "4-empty"}
    assert failed["3-broken"] == "The scene's frame 7 is broken: copy it anew."
    assert "status 0" in failed["4-empty"] and "result0 is not there" in failed["4-empty"]
    assert all(state.standing == "finished" for name, state in states.items() if name not in failed)
    for plan, kind in zip(plans, FAULTS, strict=True):
        assert starts(plan) == OFTEN.get(kind, 1), plan.name
    again = Supervisor(plans, engine, LIMITS).run()
    assert {name for name, state in again.items() if state.standing == "failed"} == failed.keys()
    assert starts(plans[0]) == 1


def test_eight_scenes_by_processes_of_this_machine(tmp_path: Path, local: Engine):
    check_eight(tmp_path, local)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_eight_scenes_by_ray(tmp_path: Path):
    from divff_nerfstudio.batch.ray_engine import RayEngine

    engine = RayEngine(tmp_path / "jobs", room=Room(4, 1e5, ()))
    engine.settle = 1.0
    try:
        assert "GB of memory" in (engine.refuse(Needs(gigabytes=1e4)) or "")  # this Ray would wait for it for good
        check_eight(tmp_path, engine)
    finally:
        engine.close()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    pytest.importorskip("submitit")
    from divff_nerfstudio.batch.submitit_engines import SlurmEngine

    if not slurm_node.is_installed():
        pytest.skip("Slurm (slurmctld, slurmd, munge) is not installed here, or this is no administrator")
    with slurm_node.one_node(tmp_path / "slurm") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        engine = SlurmEngine(tmp_path / "jobs")
        engine.settle = 3.0
        yield engine


def test_eight_scenes_by_slurm(tmp_path: Path, slurm: Engine):
    check_eight(tmp_path, slurm)


def test_slurm_queues_again_what_has_run_out_of_time(tmp_path: Path, slurm: Engine):
    """The signal that Slurm sends before the time is over: the command saves what it has, and is started again."""
    plan = scene(tmp_path, "slow", "slow")
    ((_, handle),) = slurm.submit([Job("one", plan, 0, Patience(120, 20))])
    wait_for((tmp_path / "slow" / "began").exists)
    subprocess.run(["scancel", "--signal=USR2", handle], check=True)
    wait_for((tmp_path / "slow" / "result0.saved").exists)
    (tmp_path / "slow" / "go-on").touch()
    wait_for(plan.steps[1].leaves.exists, 240)
    assert starts(plan) == 2
    wait_for(lambda: slurm.over([handle]) == {handle})
    assert slurm.reason(handle) == "COMPLETED"


def test_a_job_is_finished_by_what_it_leaves(tmp_path: Path, local: Engine):
    plans = [scene(tmp_path, "late", "late"), scene(tmp_path, "memory", "memory", Needs(cpus=1, gigabytes=2))]
    states = Supervisor(plans, local, LIMITS).run()
    assert states["late"].standing == "finished"
    assert (
        "CUDA out of memory" in states["memory"].sentence and "more than the 2 asked for" in states["memory"].sentence
    )
    assert "train-num-rays-per-batch" in states["memory"].sentence and starts(plans[1]) == 1
    plans[0].steps[0].leaves.write_text("cut sh")
    assert Supervisor(plans[:1], local, LIMITS).run()["late"].standing == "finished"
    assert starts(plans[0]) == 2


@pytest.mark.parametrize(
    ("status", "told", "end"),
    [
        (1, "Error: Frame 7 is broken: copy it anew.", "failed"),
        (0, "", "failed"),
        (-9, "", "memory"),
        (1, "RuntimeError: DataLoader worker (pid 3) is killed by signal: Killed.", "memory"),
        (1, "Traceback (most recent call last):\n  ...\nRuntimeError: worker is killed by signal: Killed.", "memory"),
        (1, "Traceback (most recent call last):\n  ...\nKeyError: 'frames'", "failed"),
    ],
)
def test_another_job_that_lacks_memory_is_not_taken_for_this_one(tmp_path: Path, status: int, told: str, end: str):
    """Jobs of one machine share the count of what was killed for lack of memory."""
    plan = scene(tmp_path, "one", "well")
    ended = Ended(status, hung=False, told=told, lacked_memory=True)
    assert Worker(Job("one", plan, 0))._error(plan.steps[0], ended, "it left nothing").end == end


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
def test_a_killed_program_of_a_conversion_is_told_as_a_lack_of_memory(tmp_path: Path):
    program, plan = tmp_path / "colmap", scene(tmp_path, "one", "well")
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    with pytest.raises(ConvertError, match="colmap mapper was killed") as raised:
        Command(str(program), tmp_path / "colmap.log").map(tmp_path, tmp_path / "database.db", tmp_path)
    ended = Ended(1, hung=False, told=f"Error: {raised.value}", lacked_memory=True)
    assert Worker(Job("one", plan, 0))._error(plan.steps[0], ended, "it left nothing").end == "memory"


@dataclass(frozen=True)
class CannotBeRead:
    """A check of files that are not to be read."""

    error: Exception

    def __call__(self) -> str | None:
        """What is wrong."""
        raise self.error


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "meta.json"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")]
)
def test_what_cannot_be_read_of_one_scene_stops_no_other(tmp_path: Path, local: Engine, error: Exception):
    plans = [scene(tmp_path, name, "well", steps=1) for name in "ab"]
    assert {state.standing for state in Supervisor(plans, local, LIMITS).run().values()} == {"finished"}
    object.__setattr__(plans[0].steps[0], "check", CannotBeRead(error))
    plans.append(scene(tmp_path, "c", "well"))
    states = Supervisor(plans, local, LIMITS).run()
    assert [state.standing for state in states.values()] == ["failed", "finished", "finished"]
    assert str(error) in states["a"].sentence


def test_a_training_that_began_with_a_checkpoint_goes_on_from_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan, run = scene(tmp_path, "one", "well", steps=1), tmp_path / "run"
    (run / "nerfstudio_models").mkdir(parents=True)
    (run / "config.yml").write_text("max_num_iterations: 9\n")
    (run / "nerfstudio_models" / "step-000000002.ckpt").write_text("")
    step = plan.steps[0]
    begins = ("--load-checkpoint", "their.ckpt", "--load_step=3")
    for name, value in {"resumes": run, "words": ("print", *begins, "--seed", "1"), "module": "words_told"}.items():
        object.__setattr__(step, name, value)
    (tmp_path / "words_told.py").write_text(
        f"import pathlib, sys; pathlib.Path({str(step.leaves)!r}).parent.mkdir(exist_ok=True)\n"
        f"pathlib.Path({str(step.leaves)!r}).write_text('whole'); print(sys.argv[1:])"
    )
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"] + os.pathsep + str(tmp_path))
    Worker(Job("one", plan, 0)).run()
    said = (plan.folder / LOG).read_text().splitlines()[-1]
    assert said == str(["print", "--load-dir", str(run / "nerfstudio_models"), "--seed", "1"])


def test_memory_for_an_evaluation_is_not_to_cost_the_training(tmp_path: Path):
    """With other options it would be another training."""
    step = replace(scene(tmp_path, "one", "well").steps[0], kind="evaluate")
    assert "train options" not in lack_of_memory(step)


def test_a_last_checkpoint_that_is_broken_is_told_with_what_to_do(tmp_path: Path):
    """Its training has nothing to do, and starting it again would not mend it."""
    plan, run = scene(tmp_path, "one", "well", steps=1), tmp_path / "run"
    (run / "nerfstudio_models").mkdir(parents=True)
    (run / "config.yml").write_text("max_num_iterations: 3\n")
    (run / "nerfstudio_models" / "step-000000002.ckpt").write_text("cut sh")
    for name, value in {"resumes": run, "check": TrainingIsWhole(run)}.items():
        object.__setattr__(plan.steps[0], name, value)
    with pytest.raises(StepError, match=r"step-000000002\.ckpt is cut short: delete it"):
        Worker(Job("one", plan, 0)).run()


def test_phases_are_jobs_of_their_own_and_a_step_done_again_takes_the_later_ones_with_it(tmp_path: Path, local: Engine):
    plan = scene(tmp_path, "phased", "well", steps=2)
    small, large = plan.steps[0], plan.steps[1]
    object.__setattr__(large, "needs", Needs(cpus=2))
    assert [len(phase) for phase in plan.phases] == [1, 1]
    assert Supervisor([plan], local, LIMITS).run()["phased"].standing == "finished"
    small.leaves.unlink()
    assert Supervisor([plan], local, LIMITS).run()["phased"].standing == "finished"
    assert len(large.leaves.with_name("result1.starts").read_text()) == 2


@pytest.mark.parametrize(("given", "threads"), [(None, "3"), ("1", "1")])
def test_a_command_computes_on_as_many_cores_as_it_asks_for(
    tmp_path: Path, local: Engine, monkeypatch: pytest.MonkeyPatch, given: str | None, threads: str
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    plan = scene(tmp_path, "one", "well", Needs(cpus=3), steps=1)
    assert Supervisor([plan], local, LIMITS).run()["one"].standing == "finished"
    assert plan.steps[0].leaves.with_suffix(".threads").read_text() == threads


def test_only_as_many_jobs_run_as_there_is_room_for(tmp_path: Path):
    pytest.importorskip("submitit")
    engine = LocalEngine(tmp_path / "jobs", Room(3, 4.0, ("0", "GPU-7")))
    kinds = [Needs(cpus=1, gigabytes=1, gpus=1)] * 3
    jobs = [Job(str(i), scene(tmp_path, f"s{i}", "slow", needs), 0) for i, needs in enumerate(kinds)]
    taken = list(engine.submit(jobs))
    assert [job.id for job, _ in taken] == ["0", "1"]
    assert list(engine.submit(jobs[2:])) == []
    assert "2 free" in (engine.refuse(Needs(gpus=3)) or "") and engine.refuse(Needs(cpus=3)) is None
    handles = [handle for _, handle in taken]
    wait_for(lambda: all((tmp_path / f"s{i}" / "began").exists() for i in range(2)))
    for handle in handles:
        engine.end(handle)
    wait_for(lambda: engine.over(handles) == set(handles))
    assert all((tmp_path / f"s{i}" / "result0.saved").exists() for i in range(2))


def test_an_interruption_ends_all_in_order_and_the_next_batch_goes_on(tmp_path: Path, local: Engine):
    plans = [scene(tmp_path, "slow", "slow"), scene(tmp_path, "other", "slow")]

    def interrupt() -> None:
        wait_for(lambda: all((tmp_path / plan.name / "began").exists() for plan in plans))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    options = BatchOptions(silence=60, grace=10, poll=0.1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        run_batch(plans, local, tmp_path, options, "manifest.csv")
    assert all((tmp_path / plan.name / "result0.saved").exists() for plan in plans)
    status = batch_status(tmp_path)
    assert not status.at_work and status.counts == {"waiting": 2}
    assert "No batch is at work here" in (tmp_path / "index.html").read_text()
    for plan in plans:
        (tmp_path / plan.name / "go-on").touch()
    run_batch(plans, local, tmp_path, options, "manifest.csv")
    assert batch_status(tmp_path).counts == {"finished": 2}
    assert "2 scenes: 2 finished.</p>" in (tmp_path / "index.html").read_text()


class RefusesTheSecond:
    """An engine that takes one job, and raises at the next."""

    settle = 0.0
    grace = None

    def __init__(self) -> None:
        self.ended: list[str] = []

    def refuse(self, needs: Needs) -> None:
        return None

    def submit(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
        yield jobs[0], "first"
        raise EngineError("The second is refused: mend it.")

    def over(self, handles: Sequence[str]) -> set[str]:
        return set(self.ended)

    def end(self, handle: str) -> None:
        self.ended.append(handle)

    def kill(self, handle: str) -> None: ...

    def reason(self, handle: str) -> None: ...

    def close(self) -> None: ...


def test_what_an_engine_has_taken_is_ended_where_it_refuses_the_rest(tmp_path: Path):
    engine = RefusesTheSecond()
    with pytest.raises(EngineError):
        run_batch([scene(tmp_path, name, "well") for name in "ab"], engine, tmp_path, BatchOptions(poll=0.1), "m.csv")
    assert engine.ended == ["first"]


class IsInterrupted(RefusesTheSecond):
    """An engine during whose every look a Ctrl-C comes."""

    def submit(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
        yield jobs[0], "first"

    def over(self, handles: Sequence[str]) -> set[str]:
        raise KeyboardInterrupt


class TakesAll(RefusesTheSecond):
    """An engine that takes all jobs at once, as an array."""

    def submit(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
        yield from ((job, job.id) for job in jobs)


def test_what_was_handed_over_is_ended_where_noting_it_is_interrupted(tmp_path: Path):
    def interrupt(name: str, state: State) -> None:
        if state.standing == "running":
            raise KeyboardInterrupt

    engine = TakesAll()
    with pytest.raises(KeyboardInterrupt):
        Supervisor([scene(tmp_path, name, "well") for name in "abc"], engine, LIMITS, interrupt).run()
    assert len(engine.ended) == 3


def test_a_second_interruption_does_not_claim_that_all_have_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    engine = IsInterrupted()
    with pytest.raises(KeyboardInterrupt):
        run_batch([scene(tmp_path, "a", "well")], engine, tmp_path, BatchOptions(poll=0.1, grace=5), "m.csv")
    said = " ".join(capsys.readouterr().out.split())
    assert engine.ended == ["first"] and "1 jobs are told to end, for which they get 10 s" in said
    assert "All jobs have ended" not in said and "may still be at work" in said


def test_room_is_what_files_kept_in_memory_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engines, "_CONTROL_GROUP", tmp_path)
    for name, text in {"max": "3000000000\n", "current": "2900000000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 900000000\n")
    assert this_machine().gigabytes == pytest.approx(1e9 / 2**30, rel=1e-6)
    monkeypatch.setattr(run, "this_machine", lambda: Room(4, float("inf"), ()))
    assert run._places(BatchOptions(), [scene(tmp_path, "one", "slow")]) == 4


@pytest.mark.parametrize(("done", "hung"), [(2, False), (1, True)])
def test_who_has_counted_to_the_end_may_still_compute(tmp_path: Path, done: int, hung: bool):
    """As an extraction, which puts its features together behind the last frame; who has not is to count on."""
    code = f"import time; from divff_nerfstudio.heartbeat import beat; beat({done}, 2); begun = time.monotonic()\n"
    code += "while time.monotonic() < begun + 7: pass"
    patience, command = Patience(silence=3, grace=1), [sys.executable, "-c", code]
    ended = watch(command, tmp_path, tmp_path / "log", tmp_path / "signs", patience, lambda *_: None, {})
    assert ended.hung is hung and (ended.status == 0) is not hung


@pytest.mark.parametrize(("share", "silent"), [(0.5, 0.0), (0.001, 900.0)])
def test_a_thread_that_only_looks_is_no_sign_of_life(tmp_path: Path, monkeypatch, share: float, silent: float):
    """As in a program that hangs before its first sign, at an import or at a disk that does not answer."""
    clock, found = 1000.0, 0.0
    monkeypatch.setattr(processes.time, "monotonic", lambda: clock)
    monkeypatch.setattr(processes, "cpu_seconds", lambda process: share * (clock - 1000))
    (tmp_path / "log").touch()
    life = processes._Life(0, tmp_path / "signs", tmp_path / "log")
    for _ in range(90):
        clock += 10
        found = life.silent_for()
    assert found == silent


def test_two_batches_in_one_folder_are_refused(tmp_path: Path, local: Engine):
    plan = scene(tmp_path, "slow", "slow")
    options = BatchOptions(poll=0.1)
    first = threading.Thread(target=run_batch, args=([plan], local, tmp_path, options, "a.csv"), daemon=True)
    first.start()
    wait_for(lambda: (sign := read_record(plan.folder / HEARTBEAT, Heartbeat)) is not None and sign.beat is not None)
    with pytest.raises(DivffError, match="Another batch is at work"):
        run_batch([plan], local, tmp_path, options, "b.csv")
    status = batch_status(tmp_path)
    assert status.at_work and status.counts == {"running": 1} and status.record.manifest == "a.csv"
    assert status.record.scenes[0].scene == str(plan.scene)
    sign = status.scenes[0].sign
    assert sign is not None and sign.beat is not None
    assert (sign.beat.done, sign.beat.of, sign.beat.loss) == (1, 2, 0.5) and sign.beat.memory
    (tmp_path / "slow" / "go-on").touch()
    first.join()


def test_what_a_killed_job_has_left_is_ended_before_the_next_attempt(tmp_path: Path):
    plan = scene(tmp_path, "slow", "slow")
    job = Job("one", plan, 0, Patience(60, 1))
    with subprocess.Popen([sys.executable, "-c", RUN], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(pickle.dumps(job))
        process.stdin.close()
        wait_for(lambda: (tmp_path / "slow" / "began").exists() and (plan.folder / "program").exists())
        process.kill()
    wait_for((tmp_path / "slow" / "result0.saved").exists)  # it has got SIGTERM, as its job was gone
    (tmp_path / "slow" / "go-on").touch()
    run_job(Job("two", plan, 0, Patience(60, 1)))
    sign = read_record(plan.folder / HEARTBEAT, Heartbeat)
    assert sign is not None and sign.job == "two" and plan.steps[1].leaves.read_text() == "whole"


def test_a_job_that_waits_for_another_one_is_not_taken_for_one_that_hangs(tmp_path: Path):
    """What was never heard is waited for, however long: the job of a batch that has died may take hours."""
    plan = scene(tmp_path, "well", "well")
    log = plan.folder / LOG
    with subprocess.Popen([sys.executable, "-c", RUN], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        with locked(plan.folder / "job", DivffError("at work")):
            process.stdin.write(pickle.dumps(Job("two", plan, 0)))
            process.stdin.close()
            wait_for(lambda: log.is_file() and "is waited for" in log.read_text())
            assert read_record(plan.folder / HEARTBEAT, Heartbeat) is None
    sign = read_record(plan.folder / HEARTBEAT, Heartbeat)
    assert sign is not None and sign.job == "two" and plan.steps[1].leaves.read_text() == "whole"
