"""Manifests: all that they can say, and one sentence with the line for each fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from divff_nerfstudio.batch.entries import Defaults, ManifestError, Needs
from divff_nerfstudio.batch.manifest import Manifest, read_manifest
from divff_nerfstudio.batch.plans import Plan, plans_of

YAML = """
steps: extract train evaluate
train: --max-num-iterations 500
gigabytes: 4
needs:
  train: {gpus: 1, minutes: 240}
scenes:
  - P01_01
  - scene: /data/P03_04
    name: other.name
    methods: [divff, divff-splat]
    train: --max-num-iterations 900
    gigabytes: 64
  - {scene: mine, steps: [export, train, convert], convert: "video 'a kitchen.mp4' --num-frames 50"}
"""
CSV = """# scenes of the lab
scene,name,steps,train,gpus
a/P01_01,,,--max-num-iterations 500,2
b/P01_01,second,train,"--optimizers.fields.optimizer.lr 0.1, quoted",
"""


def read(folder: Path, name: str, text: str, defaults: Defaults | None = None) -> Manifest:
    (folder / name).write_text(text, encoding="utf-8")
    return read_manifest(folder / name, defaults)


def test_yaml_says_it_all(tmp_path: Path):
    defaults = Defaults(words={"train": ("--vis", "wandb")}, needs=Needs(cpus=3, gigabytes=8))
    first, second, third = read(tmp_path, "all.yaml", YAML, defaults).entries
    assert (first.name, first.scene) == ("P01_01", tmp_path / "P01_01")
    assert first.words["train"] == ("--vis", "wandb", "--max-num-iterations", "500")
    assert first.needs["train"] == Needs(cpus=3, gigabytes=4, gpus=1, minutes=240)
    assert first.needs["extract"] == Needs(cpus=3, gigabytes=4)
    assert (second.name, second.methods, second.scene) == ("other.name", ("divff", "divff-splat"), Path("/data/P03_04"))
    assert second.words["train"][-4:] == ("--max-num-iterations", "500", "--max-num-iterations", "900")
    assert second.needs["train"].gigabytes == 64 and second.needs["train"].gpus == 1
    assert third.steps == ("convert", "train", "export")
    assert third.words["convert"] == ("video", "a kitchen.mp4", "--num-frames", "50")


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_csv_says_one_scene_a_row(tmp_path: Path, delimiter: str, start: str):
    text = CSV.replace("# scenes of the lab\n", "") if start else CSV
    if delimiter == ";":
        text = text.replace("name,steps,train,gpus", "name;steps;train;gpus").replace("scene,", "scene;")
        text = text.replace("P01_01,,,--max-num-iterations 500,2", "P01_01;;;--max-num-iterations 500;2")
        text = text.replace("P01_01,second,train,", "P01_01;second;train;").replace('quoted",', 'quoted";')
    first, second = read(tmp_path, "all.csv", start + text).entries
    assert (first.name, first.steps, first.needs["train"].gpus) == ("P01_01", ("extract", "train", "evaluate"), 2)
    assert (second.name, second.steps, second.needs["train"].gpus) == ("second", ("train",), None)
    assert second.words["train"] == ("--optimizers.fields.optimizer.lr", "0.1,", "quoted")


def test_a_folder_names_its_scenes_and_its_videos(tmp_path: Path):
    (tmp_path / "P01_01").mkdir()
    (tmp_path / "P01_01" / "meta.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "it's mine.MP4").write_bytes(b"")
    (tmp_path / "kitchen.mp4").write_bytes(b"")
    (tmp_path / "it's mine.MP4").rename(tmp_path / "its-mine.MP4")
    scene, video, other = read_manifest(tmp_path).entries[:3]
    assert {entry.name for entry in (scene, video, other)} == {"P01_01", "its-mine", "kitchen"}
    (made,) = (entry for entry in (scene, video, other) if entry.name == "kitchen")
    assert made.words["convert"] == ("video", "kitchen.mp4") and made.steps[0] == "convert"
    before = read_manifest(tmp_path).entries
    (tmp_path / "kitchen").mkdir()
    (tmp_path / "kitchen" / "meta.json").write_text("{}")  # as its conversion leaves it
    assert read_manifest(tmp_path).entries == before


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "scene,trian\nA,x\n", r"line 1: there is no column 'trian'"),
        ("a.csv", "name\nA\n", r"line 1: .*no column scene"),
        ("a.csv", "scene,scene\nA,B\n", r"line 1: a column is there twice"),
        ("a.csv", "scene,name\nA,a\n\nB,a/b\n", r"line 4: name: has letters or a form"),
        ("a.csv", "scene\nA\nother/A\n", r"line 3: the name A is taken by line 2"),
        ("a.csv", "scene,gpus\nA,two\n", r"line 2: gpus"),
        ("a.csv", "scene,gpus\nA,-1\n", r"line 2: gpus"),
        ("a.csv", "scene,gigabytes\nA,nan\n", r"line 2: gigabytes"),
        ("a.csv", "scene,steps\nA,train evalute\n", r"line 2: steps.1"),
        ("a.csv", "scene,steps\nA,evaluate\n", r"line 2: the step evaluate needs the step train"),
        ("a.csv", 'scene,train\nA,"--x \'y"\n', r"line 2: .*close the quotation"),
        ("a.csv", "scene,steps,convert\nA,convert,kitchen.mp4\n", r"line 2: convert is 'kitchen.mp4', write the kind"),
        ("a.csv", "scene,train\nA,b,c\n", r"line 2: it has 3 cells where there are 2 columns"),
        ("a.csv", 'scene\n"A\n', r"line 2: it is no CSV"),
        ("a.csv", "", r"names no scene"),
        ("a.csv", "scene\nwith space\n", r"line 2: the folder's name 'with space' is none"),
        ("a.yaml", "scenes:\n  - A\n  - trian: x\n    scene: B\n", r"line 3: trian: there is no such key"),
        ("a.yaml", "scenes:\n  - A\n  - name: x\n", r"line 3: scene: Field required"),
        ("a.yaml", "scenes:\n  - A\nsteps: [train]\nsteps: []\n", r"line 4: it has the key 'steps' twice"),
        ("a.yaml", "needs:\n  train:\n    gpu: 1\nscenes: [A]\n", r"line 3: needs.train.gpu: there is no such key"),
        ("a.yaml", "scenes: [A]\nown: {divff: {imported: --x}}\n", r"line 1: imported begins with '--x'"),
        ("a.yaml", "own: {divff: {extract: x}}\nscenes: [A]\n", r"line 1: own.divff.extract: there is no such key"),
        (
            "a.yaml",
            "own: {dvff: {train: --seed 1}}\nscenes: [A]\n",
            r"something of 'dvff', .* are divff: name",
        ),
        ("a.yaml", "scenes: [{scene: A, own: {dvff: {train: x}}}]\n", r"line 1: own says something of 'dvff'"),
        ("a.yaml", "scenes: [A, A]\n", r"line 1: the name A is taken"),
        ("a.yaml", "scenes: A\n", r"line 1: it has no list of scenes"),
        ("a.yaml", "scenes: [[A]]\n", r"line 1: a scene is its folder, or a mapping"),
        ("a.yaml", "a: &x [1]\nscenes: [*x, *x]\n", r"line 1: names for values"),
        ("a.yaml", "scenes:\n  - !!python/object/apply:os.system [ls]\n", r"line 2: tags such as .* are not taken"),
        ("a.yaml", "scenes:\n  - [}\n", r"line 2: it is no YAML"),
        ("a.yaml", "scenes: " + "[" * 200, r"line 1: (its lists are nested too deep|it is no YAML)"),
        ("a.yaml", "scenes:\n  - A\x00\n", r"line 1: it is no YAML"),
        ("a.yaml", 'scenes: ["a\\0b"]\n', r"line 1: scene 'a\\x00b' is no path"),
        ("a.csv", "scene\na\x00b\n", r"line 2: (scene 'a\\x00b' is no path|it is no CSV)"),  # before 3.11 no CSV
        ("a.yaml", 'scenes: [A, "\\ud800"]\n', r"line 1: (scene: should be a text|it is no YAML)"),
        ("a.csv", "scene\n~no-such-user-at-all/A\n", r"line 2: scene '~no-such-user-at-all/A' is no path"),
        ("a.yaml", "methods: {divff: yes}\nscenes: [A]\n", r"line 1: methods: should be a valid tuple"),
        ("a.yaml", "scenes: [{scene: A, steps: {train: yes}}]\n", r"line 1: steps: should be a valid tuple"),
        ("a.csv", "scene,convert\nA,video a.mp4\n", r"line 2: something is said of convert, and the steps are"),
        ("a.yaml", "scenes: [{scene: A, needs: {export: {gpus: 1}}}]\n", r"line 1: something is said of export"),
        ("a.yaml", "scenes: [{scene: A, own: {divff: {export: --x}}}]\n", r"line 1: something is said of export"),
        ("a.yaml", "export: --cloud.views 3\nscenes: [A]\n", r"something is said of export"),
        ("a.txt", "A\n", r"is no manifest: give a .csv"),
    ],
)
def test_each_fault_is_a_sentence_with_its_line(tmp_path: Path, name: str, text: str, words: str):
    with pytest.raises(ManifestError, match=words) as told:
        read(tmp_path, name, text)
    assert name in str(told.value) and "\n" not in str(told.value).rstrip()


def test_all_faults_are_said_at_once(tmp_path: Path):
    with pytest.raises(ManifestError) as told:
        read(tmp_path, "a.csv", "scene,gpus\nA,x\nB,1\nC,-3\nB,2\n")
    lines = str(told.value).splitlines()
    assert "3 faults" in lines[0] and [line[:9] for line in lines[1:]] == ["- line 2:", "- line 4:", "- line 5:"]


def test_faults_of_all_scenes_and_of_one_are_said_together(tmp_path: Path):
    text = "steps: trian\ntrain: [x]\nscenes:\n  - {scene: A, gpus: -1}\n  - name: b/c\n    minutes: 0\n  - C\n"
    with pytest.raises(ManifestError) as told:
        read(tmp_path, "a.yaml", text)
    lines = str(told.value).splitlines()[1:]
    assert [line[:9] for line in lines] == [f"- line {n}:" for n in (1, 2, 4, 5, 5, 6)]


@pytest.mark.parametrize("text", ["scene,name,,\nA,x,,\nB,,\n", "scene,name\nA,x, ,\nB,,,,\n"])
def test_blank_columns_at_the_end_are_none(tmp_path: Path, text: str):
    assert [entry.name for entry in read(tmp_path, "a.csv", text).entries] == ["x", "B"]


def test_classes_of_others_are_named_on_the_command_line_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for said in ("extract: --sources evil:X", "own: {divff: {evaluate: '--baselines=nearest,evil:X'}}"):
        with pytest.raises(ManifestError, match=r"line \d: it names the class evil:X, which files may not"):
            read(tmp_path, "a.yaml", f"scenes: [A]\n{said}\n")
    text = "scenes: [A]\nextract: --sources evil:X\nevaluate: --queries video:cut\n"
    with pytest.raises(ManifestError, match="evil:X"):
        read(tmp_path, "a.yaml", text)
    monkeypatch.setenv("DIVFF_PLUGINS", "evil:X")
    read(tmp_path, "a.yaml", text)
    monkeypatch.delenv("DIVFF_PLUGINS")
    read(tmp_path, "a.yaml", "scenes: [A]\n", Defaults(words={"extract": ("--sources", "evil:X")}))


def test_a_scene_too_many_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("divff_nerfstudio.batch.manifest._MAX_SCENES", 2)
    with pytest.raises(ManifestError, match=r"line 4: .* make batches of at most") as told:
        read(tmp_path, "a.csv", "scene\nA\nB\nC\nD\n")
    assert "\n" not in str(told.value)


def test_what_cannot_be_read_is_told(tmp_path: Path):
    with pytest.raises(ManifestError, match=r"is no manifest \(there is no such file\)"):
        read_manifest(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"scene\n\xff\xfe\n")
    with pytest.raises(ManifestError, match="no UTF-8"):
        read_manifest(tmp_path / "a.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="names no scene"):
        read_manifest(tmp_path / "empty")


def plans(folder: Path, text: str) -> list[Plan]:
    return plans_of(read(folder, "all.yaml", text), folder / "out", Needs(cpus=2, gpus=0))


def test_methods_have_options_of_their_own_and_may_be_imported(tmp_path: Path):
    (tmp_path / "last.ckpt").write_text("published")
    text = """
own:
  divff: {train: --vis wandb}
  theirs: {imported: last.ckpt --autoencoder best.pth}
scenes:
  - {scene: A, steps: convert train evaluate, methods: [divff, theirs], evaluate: --frames 3,
     convert: video-frames A.tar --width 456, own: {divff: {train: --seed 1}, theirs: {evaluate: --tasks masks}}}
"""
    (plan,) = plans(tmp_path, text)
    convert, train, evaluate, made, scored = plan.steps
    assert convert.typed == f"divff convert video-frames A.tar --data {tmp_path / 'A'} --width 456"
    assert train.typed.endswith("--vis wandb --seed 1") and evaluate.typed.endswith("--frames 3")
    run = made.leaves.parent
    assert made.typed == f"divff import last.ckpt --autoencoder best.pth --scene {tmp_path / 'A'} --output {run}"
    assert scored.typed.endswith("--frames 3 --tasks masks") and scored.after == ("import-theirs",)
    assert plan.runs == [train.leaves.parent, run] and made.method == "theirs"
    (tmp_path / "last.ckpt").write_text("of a later training")
    assert plans(tmp_path, text)[0].runs[1] != run
    anew = plans(tmp_path, text.replace("--width 456", "--width 228"))[0]
    assert anew.runs[0] != plan.runs[0]  # what was trained on other pictures is no run of these


def test_a_scene_that_was_mended_is_trained_anew(tmp_path: Path):
    """Where it is not converted by the batch, which would tell by the options."""
    (tmp_path / "A").mkdir()
    meta, text = tmp_path / "A" / "meta.json", "scenes: [{scene: A, steps: train, methods: [divff]}]"
    runs = []
    for content in ("poses", "poses", "better poses"):
        meta.write_text(content)
        runs.append(plans(tmp_path, text)[0].runs)
    assert runs[0] == runs[1] != runs[2]
    text = "scenes: [{scene: A, steps: convert train, methods: [divff], convert: video a.mp4}]"
    before = plans(tmp_path, text)[0].runs
    meta.write_text("what was converted")
    assert plans(tmp_path, text)[0].runs == before


def test_a_scene_that_may_not_be_read_keeps_no_other_from_being_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "meta.json").write_text("{}")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert [plan.name for plan in plans(tmp_path, "scenes: [A, B]")] == ["A", "B"]


def test_plans_are_commands_that_one_could_type(tmp_path: Path):
    first, second, third = plans(tmp_path, YAML)
    assert [step.name for step in first.steps] == ["extract", "train-divff", "evaluate-divff"]
    assert [step.name for step in third.steps] == ["convert", "train-divff", "export-divff"]
    assert second.steps[3].name == "train-divff-splat" and len(second.runs) == 2
    convert = third.steps[0].typed
    assert convert == f"divff convert video 'a kitchen.mp4' {tmp_path / 'mine'} --num-frames 50"
    train = first.steps[1]
    assert train.typed.startswith(
        f"ns-train divff --data {tmp_path / 'P01_01'} --output-dir {tmp_path / 'out' / 'runs'}"
    )
    assert train.needs == Needs(cpus=2, gigabytes=4, gpus=1, minutes=240)
    assert [[step.kind for step in phase] for phase in first.phases] == [["extract"], ["train"], ["evaluate"]]
    other = plans(tmp_path, YAML.replace("iterations 500", "iterations 501"))[0]
    assert other.runs != first.runs and other.steps[0] == first.steps[0]
