"""The paper's tables in one command: what it runs, keeps, repeats, and refuses before hours are spent."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import small_scene
from nerfstudio.configs.method_configs import all_methods
from test_published_checkpoint import weights, write

from divff_nerfstudio.batch import plans, worker
from divff_nerfstudio.batch.entries import Needs
from divff_nerfstudio.batch.processes import Ended
from divff_nerfstudio.batch.records import HEARTBEAT, OUTCOME, Heartbeat, Outcome, read_record
from divff_nerfstudio.batch.run import BatchOptions
from divff_nerfstudio.batch.worker import Job, run_job
from divff_nerfstudio.cli import batch as cli_batch
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.stages import StageError

SCRIPTS = Path(__file__).parent.parent / "scripts"
SCENES = ("P01_01", "P03_04")
TOTALS = {"psnr": 20.0, "moving_ap": 0.5, "object_miou": 0.1, "object_miou_sound": 0.2, "affordance_miou": 0.3}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("epic_diff")
    for scene in SCENES:
        small_scene.write(root / scene)
    return root


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    """A data set of two scenes, without frames of the video and without weights."""
    return Path(shutil.copytree(pristine, tmp_path / "data"))


class Bench:
    """The script with programs that leave what the real ones would, at once, of which no content is asked."""

    def __init__(self, script: ModuleType, data: Path, monkeypatch: pytest.MonkeyPatch):
        self.script, self.data, self.failing, self.ran = script, data, "", []
        monkeypatch.setattr(script, "run_module", self.program)
        monkeypatch.setattr(BatchOptions, "started", lambda *_: (SimpleNamespace(close=lambda: None), Needs()))
        monkeypatch.setattr(cli_batch, "run_batch", self.run_batch)
        monkeypatch.setattr(worker, "module_command", lambda *words: words)
        monkeypatch.setattr(worker, "watch", self.watch)
        for content in ("FeaturesAreWhole", "ScoresAreWhole"):
            monkeypatch.setattr(plans, content, lambda *places: lambda: None)
        whole = plans.SceneIsWhole
        monkeypatch.setattr(plans, "SceneIsWhole", lambda scene, video_frames=False: whole(scene))
        trained = lambda run, imported=False: lambda: None if run.is_dir() else "it is not there"  # noqa: E731
        monkeypatch.setattr(plans, "TrainingIsWhole", trained)

    @staticmethod
    def run_batch(scenes: Sequence[plans.Plan], *others: Any) -> None:
        """Does the jobs one after the other, in this process."""
        ends = []
        for plan in scenes:
            run_job(Job("one", plan, 0))
            ends.append(read_record(plan.folder / OUTCOME, Outcome))
        for end in ends:
            if end is None or end.end != "finished":
                raise DivffError(f"A scene has failed: {end}")

    def watch(self, command: Sequence[str], *others: Any) -> Ended:
        try:
            self.program(*command)
        except StageError as error:
            return Ended(1, hung=False, told=f"Error: {error}", lacked_memory=False)
        return Ended(0, hung=False, told="", lacked_memory=False)

    def program(self, module: str, *words: str) -> None:
        line = " ".join((module, *words))
        self.ran.append(line)
        if self.failing and self.failing in line:
            raise StageError("it failed")
        if module == "nerfstudio.scripts.train":
            output, name, stamp = (
                words[words.index(f"--{k}") + 1] for k in ("output-dir", "experiment-name", "timestamp")
            )
            _touch(Path(output) / name / words[0] / stamp / "config.yml")
        elif words[0] == "import":
            _touch(Path(words[words.index("--output") + 1]) / "config.yml")
        elif words[0] == "convert":
            (Path(words[words.index("--data") + 1]) / "high_res_video").mkdir(exist_ok=True)
        elif words[0] == "evaluate":
            self.score(words)

    @staticmethod
    def score(words: tuple[str, ...]) -> None:
        config, name = Path(words[words.index("--load-config") + 1]), words[words.index("--name") + 1]
        assert config.is_file()
        scene = next(part for part in config.parts if part in SCENES)
        carried = takewhile(lambda word: not word.startswith("--"), words[words.index("--baselines") + 1 :])
        content = {"facts": {"Scene": scene, "Method": name, "Training": "9 s"}, "totals": TOTALS}
        content["baselines"] = {baseline: {"totals": {"psnr": 10.0}} for baseline in carried}
        path = Path(words[words.index("--output") + 1]) / "scores.json"
        _touch(path)
        path.write_text(json.dumps(content))

    def config(self, **options: Any) -> Any:
        chosen = {
            "methods": ("divff", "divff-paper"),
            "baselines": ("nearest",),
            "sampled_clips": True,
            "skip_download": True,
            "extract_options": "--encoder demo",
            **options,
        }
        return self.script.ReproduceConfig(
            "epic-diff", self.data, **{"output": self.data.parent / "out", "scenes": SCENES, **chosen}
        )

    def __call__(self, **options: Any) -> list[str]:
        self.ran = []
        self.config(**options).main()
        return self.ran


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


@pytest.fixture
def bench(data: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import reproduce

    return Bench(reproduce, data, monkeypatch)


def kinds(ran: list[str]) -> list[str]:
    """The commands in short: train and method, or subcommand."""
    lines = (line.split() for line in ran)
    return [f"train {words[0]}" if "train" in module else words[0] for module, *words in lines]


PER_SCENE = ["extract", "train divff", "evaluate", "train divff-paper", "evaluate"]


def test_every_stage_is_run_once_and_the_tables_hold_all(bench: Bench, data: Path):
    assert kinds(bench()) == 2 * PER_SCENE
    evaluated = [line for line in bench.ran if " evaluate --load" in line]
    assert [line.endswith("--baselines nearest") for line in evaluated] == [True, False, True, False]
    page = (data.parent / "out" / "tables.md").read_text()
    for row in ("| divff-paper | mean of 2 | 20.00 | 0.500 |", "| nearest | P03_04 | 10.00 |  |"):
        assert row in page
    assert "Objects, published mIoU | Objects, sound mIoU" in page
    assert "divff, here | 2 scenes | this run | 0.500" in page and "arXiv 2506.05546" in page and "| 9 s |" in page
    latex = (data.parent / "out" / "tables.tex").read_text()
    assert latex.count(r"\begin{tabular}") == 6 and r"P01\_01" in latex
    assert bench() == []


def test_a_failed_scene_stops_no_other_and_is_done_later(bench: Bench):
    bench.failing = f"train divff --data {bench.data / 'P01_01'}"
    with pytest.raises(DivffError, match=r"A scene has failed.*it failed"):
        bench()
    assert kinds(bench.ran) == ["extract", "train divff", *PER_SCENE]
    bench.failing = ""
    assert kinds(bench()) == PER_SCENE[1:]


def test_other_options_repeat_what_they_change_in_another_folder(bench: Bench):
    bench()
    again = bench(train_options=("divff=--max-num-iterations 5",))
    assert kinds(again) == 2 * ["train divff", "evaluate"]
    assert all(line.endswith("--max-num-iterations 5") for line in again if "train" in line.split()[0])
    assert len(list((bench.data.parent / "out" / "runs" / "P01_01" / "divff").iterdir())) == 2
    assert kinds(bench(train_options=("divff=--max-num-iterations 5",), evaluate_options="--frames 1")) == (
        4 * ["evaluate"]
    )


def test_features_that_are_replaced_are_trained_on_once(bench: Bench):
    bench.failing = "extract"
    with pytest.raises(DivffError, match="it failed"):
        bench(scenes=("P01_01",), methods=("divff",))
    bench.failing = ""
    replaced = bench(scenes=("P01_01",), methods=("divff",), extract_options="--encoder demo --overwrite")
    assert kinds(replaced) == ["extract", "train divff", "evaluate"] and "--overwrite" in replaced[0]
    assert bench(scenes=("P01_01",), methods=("divff",)) == []


def test_a_broken_training_is_resumed(bench: Bench):
    bench(scenes=("P01_01",), methods=("divff",))
    out = bench.data.parent / "out"
    (out / "scenes" / "P01_01" / "stages" / "train-divff.json").unlink()
    (run,) = (out / "runs" / "P01_01" / "divff").iterdir()
    _touch(run / "nerfstudio_models" / "step-000000009.ckpt")
    train, *rest = bench(scenes=("P01_01",), methods=("divff",))
    assert f" --load-dir {run / 'nerfstudio_models'} " in train and kinds(rest) == ["evaluate"]


def test_published_checkpoints_are_imported_where_there_are_some(bench: Bench, capsys):
    folder = bench.data / "checkpoints"
    _touch(folder / "neuraldiff" / "ckpts" / "rel" / "P01_01" / "epoch=9.ckpt")
    _touch(folder / "divff" / "P03_04" / "last.ckpt")
    _touch(folder / "divff" / "P03_04" / "best_ckpt.pth")
    options = {"methods": ("neuraldiff-published", "divff-published"), "tasks": ("masks",)}
    first, _, second, _ = bench(**options)
    assert "epoch=9.ckpt" in first and str(bench.data / "P01_01") in first and "--autoencoder" not in first
    assert str(bench.data / "P03_04") in second and "best_ckpt.pth" in second
    assert "There is no divff-published for P01_01" in capsys.readouterr().out
    markers = bench.data.parent / "out" / "scenes" / "P01_01" / "stages"
    (markers / "import-neuraldiff-published.json").unlink()
    assert kinds(bench(**options)) == ["evaluate"]
    (folder / "divff" / "P03_04" / "last.ckpt").write_text("of a later training")
    assert kinds(bench(**options)) == ["import", "evaluate"]
    _touch(folder / "divff" / "P03_04" / "other.ckpt")
    with pytest.raises(DivffError, match=r"several files for P03_04 \(last.ckpt, other.ckpt\)"):
        bench(**options)


def test_a_method_of_ones_own_that_is_registered_is_trained(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    crisp = copy.deepcopy(all_methods["divff"])
    crisp.method_name = "divff-crisp"
    monkeypatch.setitem(all_methods, "divff-crisp", crisp)
    assert kinds(bench(scenes=("P01_01",), methods=("divff-crisp",))) == ["extract", "train divff-crisp", "evaluate"]


def test_frames_of_the_video_are_cut_first(bench: Bench):
    videos = bench.data.parent / "videos"
    for scene in SCENES:
        _touch(videos / f"{scene}.tar")
    ran = bench(videos=videos, sampled_clips=False, methods=("divff",))
    assert kinds(ran)[:2] == ["convert", "extract"] and f"video-frames {videos / 'P01_01.tar'}" in ran[0]


def test_what_is_missing_is_named_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    shutil.rmtree(bench.data / "P03_04")
    (bench.data / "P01_01" / "frames" / "IMG_0000000050.bmp").unlink()
    options = {"methods": ("divff", "divff-published"), "baselines": ("ooal",), "extract_options": ""}
    with pytest.raises(DivffError) as error:
        bench(**options, sampled_clips=False)
    said = str(error.value)
    for words in (
        "IMG_0000000050.bmp is missing",
        f"divff download epic-diff --root {bench.data} --scenes P03_04",
        "holds no checkpoint of P01_01, P03_04",
        "ckpt_4frames.pth is missing",
        "seen_best is missing",
    ):
        assert words in said
    assert bench.ran == []
    small_scene.write(bench.data / "P03_04")
    for scene in SCENES:
        shutil.rmtree(bench.data / scene / "affordance_annotations")
    shutil.rmtree(bench.data / "P01_01" / "object_annotations")
    with pytest.raises(DivffError) as error:
        bench(scenes=("P03_04",), sampled_clips=False)
    said = str(error.value)
    assert "for the task affordances" in said and "--tasks masks objects views" in said and "task objects" not in said
    assert "high_res_video holds no frames of the video" in said and "--sampled-clips" in said


def test_missing_models_are_named_before_anything_is_trained(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DivffError, match=r"none_such is no folder(.|\n)*--skip-baselines"):
        bench(baselines=("owl",), evaluate_options=f"--models.owl {bench.data / 'none_such'}")
    assert bench.ran == []


def test_what_is_not_there_is_fetched_and_a_refusal_is_no_end(bench: Bench):
    shutil.rmtree(bench.data / "P03_04")
    bench.failing = "download"
    with pytest.raises(DivffError, match="P03_04"):
        bench(skip_download=False)
    items = [line.split()[-1] for line in bench.ran]
    assert items == ["metadata", "frames", "object-annotations", "affordance-annotations"]
    assert all("--scenes P01_01 P03_04" in line for line in bench.ran)
    small_scene.write(bench.data / "P03_04")
    assert kinds(bench(skip_download=False)) == 2 * PER_SCENE


def test_a_dry_run_tells_and_does_nothing(bench: Bench, capsys):
    (bench.data / "P03_04" / "meta.json").unlink()
    assert bench(dry_run=True, skip_download=False) == []
    said = " ".join(capsys.readouterr().out.split())
    assert f"ns-train divff-paper --data {bench.data / 'P03_04'}" in said and "download: metadata" in said
    assert "Missing:" in said
    assert not (bench.data.parent / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scenes": ("P99_01",)}, "no scene P99_01"),
        ({"scenes": ()}, "--scenes names none"),
        ({"methods": ("divff", "divff")}, "--methods names one twice"),
        ({"methods": ("neuraldiff-published",), "tasks": ("objects",)}, "geometry alone"),
        ({"methods": ("divff-crisp",)}, "no method divff-crisp: choose among .*neuraldiff-published"),
        ({"train_options": ("divff-splat=--vis viewer",)}, "names none of the methods"),
        ({"train_options": ("divff=--max-num-iteration 5",)}, "--train-options divff=... is not as"),
        ({"extract_options": "--encoders demo"}, "--extract-options is not as"),
        ({"evaluate_options": "--frames few"}, "--evaluate-options is not as"),
        ({"numbers": Path("none.json")}, r"none\.json is missing"),
    ],
)
def test_options_that_make_no_sense_are_refused(bench: Bench, options: dict, words: str):
    with pytest.raises(DivffError, match=words):
        bench(**options)
    assert bench.ran == []


@pytest.mark.parametrize(
    "content", ["{", '[{"score": "psnr"}]', '[{"score": "x", "method": "", "data": "", "value": 1, "source": ""}]']
)
def test_published_numbers_must_be_whole(bench: Bench, content: str):
    path = bench.data / "numbers.json"
    path.write_text(content)
    with pytest.raises(DivffError, match=r"numbers\.json"):
        bench(numbers=path)


@pytest.mark.slow
def test_the_real_commands_go_on_after_a_kill(data: Path, tmp_path: Path):
    """Training is killed with all that has started it; the same line finishes it, imports, evaluates, tabulates, and
    repeats nothing else."""
    checkpoint = data / "checkpoints" / "neuraldiff" / "P01_01" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    write(checkpoint, weights({}))
    training = (
        "divff=--max-num-iterations 400 --steps-per-save 20 --pipeline.model.num-samples 8 "
        "--pipeline.model.num-proposal-samples 12 --pipeline.model.fields.static-resolutions 8 16 "
        "--pipeline.datamanager.train-num-rays-per-batch 64 --machine.device-type cpu"
    )
    line = [
        *(sys.executable, str(SCRIPTS / "reproduce.py"), "epic-diff", "--root", str(data)),
        *("--output", str(tmp_path / "out"), "--scenes", "P01_01", "--methods", "divff", "neuraldiff-published"),
        *("--features", "sound", "--extract-options=--encoder demo", "--sampled-clips", "--baselines", "nearest"),
        *("--evaluate-options=--moments 2", "--train-options", training, "--skip-download"),
        *("--poll", "0.2", "--cpus", "1", "--gigabytes", "0.5"),
    ]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    out, log = tmp_path / "out", tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(line, env=env, stdout=file, stderr=file, start_new_session=True)
        deadline = time.monotonic() + 900
        while not list(out.glob("runs/P01_01/divff/*/nerfstudio_models/*.ckpt")):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-6000:]
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        job = read_record(out / "scenes" / "P01_01" / HEARTBEAT, Heartbeat)
        assert job is not None and job.program is not None
        os.kill(job.process, signal.SIGKILL)
        os.killpg(job.program, signal.SIGKILL)  # before it has saved, as it would where its job is killed
    stages = out / "scenes" / "P01_01" / "stages"
    assert [path.stem for path in stages.iterdir()] == ["extract"]
    kept = (stages / "extract.json").stat().st_mtime_ns
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    assert (stages / "extract.json").stat().st_mtime_ns == kept
    (run,) = (out / "runs" / "P01_01" / "divff").iterdir()
    assert len(list(run.glob("events.out.tfevents.*"))) == 2
    page = (out / "tables.md").read_text()
    for words in ("| divff | P01_01 |", "| neuraldiff-published | P01_01 |", "| nearest | P01_01 |", "## Objects"):
        assert words in page
    finished = {path.name: path.stat().st_mtime_ns for path in stages.iterdir()}
    again = subprocess.run(line, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0, again.stdout
    assert len(finished) == 5 and finished == {path.name: path.stat().st_mtime_ns for path in stages.iterdir()}
