"""`divff batch` and `divff batch status` with the real commands: a scene that is trained, and one that is broken."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import zipfile
from pathlib import Path

import pytest
from conftest import write_tiny_scene
from nerfstudio.configs.method_configs import all_methods
from tiny_run import write_features

from divff_nerfstudio import cli
from divff_nerfstudio.batch.contents import (
    FeaturesAreWhole,
    PointsAreWhole,
    SceneIsWhole,
    ScoresAreWhole,
    TrainingIsWhole,
    option,
)
from divff_nerfstudio.batch.entries import ManifestError
from divff_nerfstudio.batch.manifest import read_manifest
from divff_nerfstudio.batch.page import batch_page
from divff_nerfstudio.batch.records import (
    LOG,
    BatchRecord,
    Heartbeat,
    RunRecord,
    SceneRecord,
    State,
    scene_folder,
    states,
    write_record,
)
from divff_nerfstudio.batch.status import batch_status, status_table, summary, told_duration
from divff_nerfstudio.cli import batch_options
from divff_nerfstudio.cli.batch import option_faults
from divff_nerfstudio.cli.batch_options import Checked, OptionReader
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.locks import locked

SMALL = (
    "--max-num-iterations 3 --machine.device-type cpu --pipeline.datamanager.features none "
    "--pipeline.datamanager.train-num-rays-per-batch 32 --pipeline.model.fields.static-resolutions 8 "
    "--pipeline.model.fields.dynamic-resolutions 8 --pipeline.model.num-samples 4 "
    "--pipeline.model.num-proposal-samples 6"
)


def test_scenes_are_trained_and_scored_and_a_broken_one_stops_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("submitit")
    write_tiny_scene(tmp_path / "good")
    broken = write_tiny_scene(tmp_path / "broken")
    (broken / "meta.json").write_text("{}")
    manifest = tmp_path / "all.csv"
    manifest.write_text(
        f"scene,steps,train,evaluate\ngood,train evaluate,{SMALL},--tasks masks\nbroken,train,{SMALL},\n"
    )
    output = tmp_path / "out"
    line = ["batch", str(manifest), "--output", str(output), "--poll", "0.2", "--gigabytes", "0.5", "--cpus", "1"]
    assert cli.main(line) == 1
    told = capsys.readouterr()
    assert re.search(r"1 of 2 scenes have failed, the first is broken: \S*meta\.json", told.err)
    found = states(output, batch_status(output).record)
    assert found["good"].standing == "finished" and set(found["good"].seconds) == {"train-divff", "evaluate-divff"}
    page = (output / "index.html").read_text()
    assert "1 failed, 1 finished" in page and "scores/good/divff/report.html" in page and "data:image/jpeg" in page
    run = Path(batch_status(output).record.scenes[0].runs[0].run)
    checkpoint = next((run / "nerfstudio_models").glob("*.ckpt"))
    assert TrainingIsWhole(run)() is None and ScoresAreWhole(output / "scores" / "good" / "divff")() is None
    assert cli.main(["batch", "status", str(output)]) == 0
    assert "finished" in capsys.readouterr().out
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    assert "cut short" in (TrainingIsWhole(run)() or "")


def test_faults_of_options_are_told_before_anything_is_done(tmp_path: Path):
    (tmp_path / "all.csv").write_text("scene,evaluate\nA,\nB,--tasks masks --frmes 3\nC,--frames x\n")
    with pytest.raises(ManifestError) as told:
        read_manifest(tmp_path / "all.csv", look=option_faults)
    assert re.search(r"line 3: evaluate .*frmes", str(told.value)) and "line 4: evaluate" in str(told.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("evaluate: --frames 0", "--frames is 0"),
        ("steps: train, train: --max-num-iterations -3", "--max-num-iterations is -3"),
        ("steps: train, train: --pipeline.model.default-time 2", "--pipeline.model.default-time is 2"),
        ("steps: train, train: --output-dir /elsewhere", "--output-dir is for the batch to say"),
        ("steps: train, train: --experiment_name=other", "--experiment-name is for the batch to say"),
        ("steps: train, train: --method-name other", "--method-name is for the batch to say"),
        ("steps: train, train: --relative-model-dir models", "--relative-model-dir is for the batch to say"),
        ("evaluate: --load-config other/config.yml", "--load-config is for the batch to say"),
        ("extract: --data other", "--data is for the batch to say"),
    ],
)
def test_options_that_would_fail_or_lead_elsewhere_are_told(tmp_path: Path, row: str, said: str):
    (tmp_path / "all.yaml").write_text(f"scenes: [{{scene: A, {row}}}]\n")
    with pytest.raises(ManifestError, match=said) as told:
        read_manifest(tmp_path / "all.yaml", look=option_faults)
    assert "line 1: " in str(told.value)


def test_options_of_training_are_tried_with_each_method_that_gets_them(tmp_path: Path):
    rows = "[A, {scene: B, methods: [divff-splat]}]"  # on one line, and Gaussians have no proposal samples
    text = f"steps: train\ntrain: --pipeline.model.num-proposal-samples 6\nscenes: {rows}\n"
    (tmp_path / "all.yaml").write_text(text)
    with pytest.raises(ManifestError, match=r"num-proposal-samples") as told:
        read_manifest(tmp_path / "all.yaml", look=option_faults)
    assert "faults" not in str(told.value)


def test_a_method_of_ones_own_is_one_where_it_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "all.yaml").write_text("steps: train\nscenes: [A, {scene: B, methods: [divff, divff-crisp]}]\n")
    entries = read_manifest(tmp_path / "all.yaml").entries
    (fault,) = option_faults(entries)
    assert "there is no method divff-crisp, choose from divff, " in fault
    crisp = copy.deepcopy(all_methods["divff"])
    crisp.method_name = "divff-crisp"
    monkeypatch.setitem(all_methods, "divff-crisp", crisp)
    assert not option_faults(entries)


def test_faults_of_lines_and_of_options_are_told_at_once(tmp_path: Path):
    rows = "A,x,\nB,1,--frmes 3\nC,2,--frames 0\nB,1,\n"
    (tmp_path / "all.csv").write_text("scene,gpus,evaluate\n" + rows)
    with pytest.raises(ManifestError, match="has 4 faults") as told:
        read_manifest(tmp_path / "all.csv", look=option_faults)
    lines = str(told.value).splitlines()[1:]
    assert [line[:9] for line in lines] == ["- line 2:", "- line 3:", "- line 4:", "- line 5:"]


def test_options_of_a_step_that_nobody_asks_for_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "all.yaml").write_text("scenes: [A]\n")
    line = ["batch", str(tmp_path / "all.yaml"), "--output", str(tmp_path / "out"), "--export=--cloud.views 3"]
    assert cli.main([*line, "--dry-run"]) == 1
    assert "--export says something of a step that no scene has" in capsys.readouterr().err
    assert cli.main([*line, "--steps", "train", "export", "--dry-run"]) == 0


def test_steps_that_are_typed_may_be_some_of_those_a_manifest_speaks_of(tmp_path: Path):
    (tmp_path / "all.yaml").write_text("train: --max-num-iterations 7\nscenes: [{scene: A, convert: video a.mp4}]\n")
    line = ["batch", str(tmp_path / "all.yaml"), "--output", str(tmp_path / "out"), "--dry-run"]
    assert cli.main(line) == 1
    for steps in (["convert"], ["extract", "train"], ["extract", "train", "evaluate"]):
        assert cli.main([*line, "--steps", *steps]) == 0


def test_a_dry_run_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "all.yaml").write_text("scenes: [A, B]\n")
    assert cli.main(["batch", str(tmp_path / "all.yaml"), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "divff extract --data" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_a_folder_that_is_no_batch_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["batch", "status", str(tmp_path)]) == 1
    assert "give the --output of a `divff batch`" in " ".join(capsys.readouterr().err.split())


def test_contents_tell_what_is_whole(tmp_path: Path):
    root = write_tiny_scene(tmp_path / "scene")
    assert SceneIsWhole(root)() is None and SceneIsWhole(root, video_frames=True)() is None
    sorted((root / "high_res_video").iterdir())[1].unlink()
    assert SceneIsWhole(root)() is None
    assert "lacks 1 of the video's frames" in (SceneIsWhole(root, video_frames=True)() or "")
    next((root / "frames").iterdir()).write_bytes(b"")
    assert "missing or empty" in (SceneIsWhole(root)() or "")
    assert "lacks the features image" in (FeaturesAreWhole(root, None, ("image",))() or "")
    assert "no checkpoint" in (TrainingIsWhole(tmp_path)() or "") or "does not tell" in (
        TrainingIsWhole(tmp_path)() or ""
    )
    models = tmp_path / "run" / "nerfstudio_models"
    models.mkdir(parents=True)
    with zipfile.ZipFile(models / "step-000000003.ckpt", "w") as file:
        file.writestr("data", "")
    assert "does not tell" in (TrainingIsWhole(tmp_path / "run", imported=True)() or "")
    (tmp_path / "run" / "config.yml").write_text("its steps are not told as those of a training")
    assert "does not tell" in (TrainingIsWhole(tmp_path / "run")() or "")
    assert TrainingIsWhole(tmp_path / "run", imported=True)() is None
    (tmp_path / "scores.json").write_text('{"facts": {"Scene": "a"}, "totals": {}}')
    assert "totals" in (ScoresAreWhole(tmp_path)() or "")
    (tmp_path / "scores.json").write_text('{"facts": {"Scene": "a"}, "totals": {"psnr": 20.0}}')
    (tmp_path / "report.html").write_text("<html>")
    assert "cut short" in (ScoresAreWhole(tmp_path)() or "")
    ply = "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nend_header\n1\n"
    (tmp_path / "a.ply").write_text(ply)
    assert "no whole PLY" in (PointsAreWhole(tmp_path / "a.ply")() or "")
    (tmp_path / "a.ply").write_text(ply + "2\n")
    assert PointsAreWhole(tmp_path / "a.ply")() is None and PointsAreWhole(tmp_path)() is None
    assert option(["--a", "1", "2", "--b=3", "--a", "4"], "--a") == ["4"] and option(["--b=3"], "--b") == ["3"]


def test_features_must_be_of_all_frames_and_not_cut_short(tmp_path: Path):
    root = write_tiny_scene(tmp_path / "scene")
    write_features(root, tmp_path / "encoder")
    assert FeaturesAreWhole(root, None, ("image", "video", "regulariser", "my.module:Source"))() is None
    assert "lacks the features hotspot" in (FeaturesAreWhole(root, None, ("hotspot",))() or "")
    index = root / "features" / "video" / "index.npy"
    whole = index.read_bytes()
    index.write_bytes(whole[:-3])
    assert "index.npy" in (FeaturesAreWhole(root, None, ("image",))() or "")
    index.write_bytes(whole)
    meta = json.loads((root / "meta.json").read_text())
    meta["ids_all"] = meta["ids_all"][:-1]
    for split in ("ids_train", "ids_val", "ids_test"):
        meta[split] = [i for i in meta[split] if i in meta["ids_all"]]
    (root / "meta.json").write_text(json.dumps(meta))
    assert "of other frames" in (FeaturesAreWhole(root, None, ("image",))() or "")


def a_batch(folder: Path, **found: State) -> None:
    """Notes of a batch, with scenes in some states."""
    scenes = [
        SceneRecord(
            name=name,
            scene="/s",
            steps=["extract", "train"],
            runs=[RunRecord(method="<b>divff</b>", run=str(folder), scores=str(folder))],
        )
        for name in found
    ]
    record = BatchRecord(manifest="/x/<script>.csv", engine="local", at_once=2, scenes=scenes)
    write_record(folder / "batch.json", record)
    for name, state in found.items():
        write_record(scene_folder(folder, name) / "state.json", state)


def test_the_page_escapes_all_texts(tmp_path: Path):
    a_batch(tmp_path, a=State(standing="failed", sentence="<img src=x onerror=alert(1)> & 'more'"))
    (scene_folder(tmp_path, "a") / LOG).write_text("")
    page = batch_page(batch_status(tmp_path), tmp_path, tmp_path)
    assert "<img src=x" not in page and "&lt;img src=x" in page and "<script>" not in page and "<b>divff" not in page
    assert f"scenes/a/{LOG}" in page and os.fspath(tmp_path) not in page


def test_the_page_of_a_folder_that_is_here_has_a_title(tmp_path: Path):
    a_batch(tmp_path / "of-lab", a=State())
    path = tmp_path / "of-lab" / "batch.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "manifest": "."}))
    assert "<title>Batch of of-lab</title>" in batch_page(batch_status(path.parent), path.parent, path.parent)


def test_a_batch_of_an_earlier_version_is_told_of(tmp_path: Path):
    a_batch(tmp_path, a=State(standing="finished"))
    path = tmp_path / "batch.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "began": 1.7e9}))
    assert batch_status(tmp_path).counts == {"finished": 1}


@pytest.mark.skipif(os.name != "posix", reason="Windows tells it otherwise")
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_batch_of_somebody_else_is_seen_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    """Whoever may read its folder, and not write into it; or has its disk for reading alone."""
    a_batch(tmp_path, a=State())

    def refuse(path: Path, busy: Exception) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with locked(tmp_path / "batch", DivffError("at work")):
        monkeypatch.setattr("divff_nerfstudio.batch.status.take_lock", refuse)
        assert batch_status(tmp_path).at_work
    assert not batch_status(tmp_path).at_work


def test_the_end_is_told_from_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done = State(standing="finished", seconds={"extract": 100.0, "train": 1100.0})
    a_batch(tmp_path, a=done, b=State(seconds={"extract": 90.0}), c=State(), d=State(standing="running"))
    status = batch_status(tmp_path)
    assert status.counts == {"finished": 1, "waiting": 2, "interrupted": 1} and "start the same line again" in summary(
        status
    )
    monkeypatch.setattr("divff_nerfstudio.batch.status.is_at_work", lambda folder: True)
    left = batch_status(tmp_path).seconds_left
    assert left == pytest.approx((1100 + 2 * (95 + 1100)) / 2)
    assert [told_duration(value) for value in (20, 150, 7300, 200000)] == ["20 s", "2 min", "2 h 2 min", "2 days 7 h"]


def test_the_last_scene_takes_as_long_as_if_it_were_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("divff_nerfstudio.batch.status.is_at_work", lambda folder: True)
    done = State(standing="finished", seconds={"extract": 100.0, "train": 1100.0})
    a_batch(tmp_path, a=done, b=done, c=State())
    assert batch_status(tmp_path).seconds_left == pytest.approx(1200)


def test_what_is_queued_is_not_told_as_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A cluster is handed all jobs at once; signs of life of jobs before them are no signs of theirs."""
    monkeypatch.setattr("divff_nerfstudio.batch.status.is_at_work", lambda folder: True)
    done = State(standing="finished", seconds={"extract": 100.0, "train": 1100.0})
    a_batch(tmp_path, a=done, **{name: State(standing="running", job=name) for name in "bcd"})
    for name, job in {"b": "b", "c": "an earlier one"}.items():
        sign = Heartbeat(job=job, count=1, at=1.0, machine="m", process=1, step="train")
        write_record(scene_folder(tmp_path, name) / "heartbeat.json", sign)
    status = batch_status(tmp_path)
    assert [scene.standing for scene in status.scenes] == ["finished", "running", "queued", "queued"]
    assert status.scenes[1].progress == "train" and status.scenes[2].progress == "0 of 2 steps"
    assert status.seconds_left == pytest.approx(1100 + 2 * 1200)  # its features are done, and one at a time runs
    status_table(status)


@pytest.mark.parametrize(
    ("step", "form", "values", "others"),
    [
        ("convert", "video {} --num-frames {}", ("a.mp4 10", "v/b.mp4 20"), ("c.mp4 30", "d.mp4 9", "e.mp4 7.5")),
        ("convert", "colmap {} --video-width {}", ("a/0 64", "b/1 128"), ("c/2 0", "d/2 8", "e/3 999999")),
        ("train", "--machine.seed {} --optimizers.fields.optimizer.lr {}", ("1 0.1", "2 0.2"), ("3 0.3", "4 0")),
        ("train", "--max-num-iterations {} --pipeline.model.default-time {}", ("9 0", "8 1"), ("0 1", "5 2", "5 0.5")),
        ("train", "--machine.seed {} --machine.seed {}", ("1 2", "3 4"), ("5 5", "6 7", "8 9")),
        ("evaluate", "--frames {} --tasks {}", ("3 masks", "4 masks"), ("5 masks", "5 a.b", "0 masks", "-1 masks")),
        ("extract", "--encoder {} --sources {}", ("demo image", "x/y image"), ("x/z image", "x/w 3", "x/v a.b")),
    ],
)
def test_lines_of_one_form_are_judged_as_if_each_were_read_by_itself(
    step: Checked, form: str, values: tuple[str, ...], others: tuple[str, ...]
):
    reader = OptionReader()
    for each in (*values, *others, *values):
        words = form.format(*each.split()).split()
        assert reader.fault_of(step, "divff", words) == OptionReader().fault_of(step, "divff", words)


def test_a_manifest_of_thousands_needs_few_parsers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = "".join(f'"convert train",S{i},video v/{i}.mp4,--machine.seed {i}\n' for i in range(1000))
    (tmp_path / "all.csv").write_text("steps,scene,convert,train\n" + rows + "train,last,,--machine.seed -1\n")
    entries, built = read_manifest(tmp_path / "all.csv").entries, []
    parse = batch_options.tyro.cli
    monkeypatch.setattr(batch_options.tyro, "cli", lambda *given, **named: built.append(1) or parse(*given, **named))
    (fault,) = option_faults(entries)
    assert len(built) == 3 and re.match(r"line 1002: train is not .*seed", fault)
