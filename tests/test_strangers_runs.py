"""Runs that are damaged, moved, of another scene, or made by somebody who wishes harm."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
import yaml
from conftest import write_tiny_scene

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evaluation.runs import load_run, our_configs
from divff_nerfstudio.run_config import UnsafeConfigError, allowed_classes, parse_config, read_config
from divff_nerfstudio.run_folder import relocate

TARGET = "!!python/name:divff_nerfstudio.trainer.DivFFTrainer ''"
OURS = "!!python/object:divff_nerfstudio.trainer."
CHECKPOINT = Path("nerfstudio_models/step-000000002.ckpt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scene, "tiny", and a run of three steps on it, "run"."""
    folder = tmp_path_factory.mktemp("trained")
    write_tiny_scene(folder / "tiny")
    config = tiny_run.config(folder / "tiny", folder / "out", steps=3)
    config.save_config()
    trainer = config.setup()
    trainer.setup()
    trainer.train()
    config.get_base_dir().rename(folder / "run")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, in a place of its own; the config.yml names the old one."""
    shutil.copytree(trained, tmp_path / "theirs")
    config = tmp_path / "theirs" / "run" / "config.yml"
    config.write_text(config.read_text())
    return tmp_path / "theirs"


def refused(folder: Path, *words: str) -> str:
    """Expects one sentence that holds the words, and no code to have run."""
    with pytest.raises(DivffError) as error:
        load_run(folder / "run" / "config.yml", folder / "tiny")
    message = str(error.value)
    assert "\n" not in message and message.endswith("."), message
    for word in words:
        assert word in message, message
    assert not (folder / "was here").exists()
    return message


def edit_config(folder: Path, old: str, new: str) -> None:
    path = folder / "run" / "config.yml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def edit_state(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "run" / CHECKPOINT
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


class Touch:
    """Makes a file when it is unpickled the usual way."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_run_opens_wherever_it_lies(folder: Path) -> None:
    run = load_run(folder / "run" / "config.yml", folder / "tiny")
    assert run.step == 2 and not run.pipeline.training
    assert run.pipeline.datamanager.train_dataset.scene.root == folder / "tiny"
    assert run.config.get_base_dir() == folder / "run"


def test_a_relative_scene_is_found_from_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (folder / "run" / "config.yml").read_text()
    content = yaml.compose(text, Loader=yaml.SafeLoader)
    assert content is not None
    config = parse_config(text, "config.yml", our_configs())
    config.pipeline.datamanager.data = None
    config.pipeline.datamanager.dataparser.data = Path("tiny")
    (folder / "run" / "config.yml").write_text(yaml.dump(config))
    monkeypatch.chdir("/")
    pipeline = load_run(folder / "run" / "config.yml").pipeline
    assert pipeline.datamanager.train_dataset.scene.root == folder / "tiny"


def test_a_new_run_names_its_places_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    write_tiny_scene(work / "tiny", extras=False)
    for name in ("features", "video"):
        (work / name).mkdir()
    monkeypatch.chdir(work)
    config = tiny_run.config(Path("tiny"), Path("../out"))
    config.pipeline.datamanager.feature_dir = Path("features")
    config.pipeline.datamanager.dataparser.video_dir = Path("video")
    config.save_config()
    assert config.folder is not None
    config.folder.release()
    path = config.get_base_dir() / "config.yml"
    monkeypatch.chdir("/")
    written = read_config(path, our_configs())
    assert written.output_dir == tmp_path / "out" and written.get_base_dir() == path.parent
    assert written.pipeline.datamanager.dataparser.data == work / "tiny"
    assert written.pipeline.datamanager.feature_dir == work / "features"
    assert written.pipeline.datamanager.dataparser.video_dir == work / "video"


def test_a_run_that_moved_together_with_its_scene_finds_it(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write_tiny_scene(old / "data" / "tiny", extras=False)
    config = tiny_run.config(old / "data" / "tiny", old / "out")
    config.pipeline.datamanager.feature_dir = old / "features"
    (old / "features").mkdir()
    run, config.load_dir = config.get_base_dir().relative_to(old), config.get_checkpoint_dir()
    (old / run).mkdir(parents=True)
    old.rename(new)
    relocate(config, new / run / "config.yml")
    assert config.pipeline.datamanager.data == new / "data" / "tiny" and config.get_base_dir() == new / run
    assert config.pipeline.datamanager.feature_dir == new / "features"
    assert config.load_dir == new / run / "nerfstudio_models"


def test_a_scene_that_is_gone_asks_for_data(folder: Path) -> None:
    shutil.rmtree(folder / "tiny")
    refused(folder, "meta.json", "--data")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "no checkpoint"),
        (lambda path: path.write_bytes(b""), "no readable checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "no readable checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "no readable checkpoint"),
        (lambda path: path.write_text("hello"), "no readable checkpoint"),
        (lambda path: torch.save([1], path), "no checkpoint of a run"),
        (lambda path: torch.save({"step": "2", "pipeline": {}}, path), "no checkpoint of a run"),
        (lambda path: torch.save({"step": -2, "pipeline": {}}, path), "no checkpoint of a run"),
        (lambda path: torch.save({"step": 10**30, "pipeline": {}}, path), "no checkpoint of a run"),
        (lambda path: torch.save({"state_dict": {"a": torch.zeros(2)}}, path), "no checkpoint of a run"),
        (lambda path: path.rename(path.with_name("step-2.ckpt")), "no checkpoint"),
        (lambda path: (path.unlink(), path.mkdir()), "no checkpoint"),
    ],
)
def test_damaged_checkpoints(folder: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(folder / "run" / CHECKPOINT)
    refused(folder, said, "nerfstudio_models")


def test_a_hostile_checkpoint_runs_nothing(folder: Path) -> None:
    torch.save({"step": 2, "pipeline": Touch(folder / "was here")}, folder / "run" / CHECKPOINT)
    refused(folder, "is refused because it asks for")
    (folder / "run" / CHECKPOINT).write_bytes(pickle.dumps(Touch(folder / "was here"), 2))
    refused(folder)


def test_stray_files_beside_checkpoints_are_left_alone(folder: Path) -> None:
    models = (folder / "run" / CHECKPOINT).parent
    for name in ("notes.txt", "step-x.ckpt", ".step-000000009.tmp.ckpt", "step-000000009.ckpt.part", "step.ckpt"):
        (models / name).write_text("stray")
    (models / "step-000000010").mkdir()
    assert load_run(folder / "run" / "config.yml", folder / "tiny").step == 2


def _first(state: dict) -> str:
    return next(
        name
        for name, value in state["pipeline"].items()
        if "field" in name and value.numel() > 10 and value.is_floating_point()
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["pipeline"][_first(s)].view(-1)[3:4].fill_(float("nan")), ("not finite", "earlier")),
        (lambda s: s["pipeline"][_first(s)].view(-1)[3:4].fill_(float("inf")), ("not finite",)),
        (lambda s: s["pipeline"].update({_first(s): s["pipeline"][_first(s)].half()}), ("float16 where float32",)),
        (lambda s: s["pipeline"].update({_first(s): s["pipeline"][_first(s)].double()}), ("float64 where float32",)),
        (lambda s: s["pipeline"].update({_first(s): s["pipeline"][_first(s)].int()}), ("int32 where float32",)),
        (lambda s: s["pipeline"].update({_first(s): 3}), ("no tensor",)),
        (lambda s: s["pipeline"].update({3: torch.zeros(1)}), ("no tensor",)),
        (lambda s: s["pipeline"].update({_first(s): torch.zeros(2, device="meta")}), ("no tensor",)),
        (lambda s: s["pipeline"].update({f"module.{_first(s)}": torch.zeros(1)}), ("holds a weight twice",)),
        (lambda s: s["pipeline"].pop(_first(s)), ("does not fit",)),
        (lambda s: s["pipeline"].update({"_model.more": torch.zeros(1)}), ("does not fit", "_model.more")),
        (lambda s: s["pipeline"].update({_first(s): torch.zeros(2, 2)}), ("does not fit",)),
        (lambda s: s["pipeline"].clear(), ("does not fit",)),
    ],
)
def test_checkpoints_with_other_content(folder: Path, change: Callable[[dict], object], words: tuple[str, ...]) -> None:
    edit_state(folder, change)
    refused(folder, *words, CHECKPOINT.name)


@pytest.mark.parametrize("what", ["nears", "fars", "poses"])
def test_a_checkpoint_of_another_scene(folder: Path, what: str) -> None:
    path = folder / "tiny" / "meta.json"
    meta = json.loads(path.read_text())
    for i in meta["poses"]:
        if what == "poses":
            meta["poses"][i][0][3] += 0.5
        else:
            meta[what][i] *= 1.3
    path.write_text(json.dumps(meta))
    refused(folder, f"other {what} than", "--data")


def test_a_checkpoint_of_other_frames(folder: Path) -> None:
    shutil.rmtree(folder / "tiny")
    write_tiny_scene(folder / "tiny", frames=12, extras=False)
    refused(folder, "does not fit this configuration and scene")


def test_older_checkpoints_know_no_poses(folder: Path) -> None:
    edit_state(folder, lambda state: state["pipeline"].pop("_model.train_poses"))
    assert load_run(folder / "run" / "config.yml", folder / "tiny").step == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "!!python/object:divff_nerfstudio.data.epic_diff.EpicDiffDataParserConfig",
            "!!python/object:nerfstudio.data.dataparsers.minimal_dataparser.MinimalDataParserConfig",
        ),
        (
            "!!python/name:divff_nerfstudio.trainer.DivFFTrainer ''",
            "!!python/object/apply:os.system ['touch \"CANARY\"']",
        ),
        (
            "!!python/name:divff_nerfstudio.trainer.DivFFTrainer ''",
            "!!python/object/new:os.system ['touch \"CANARY\"']",
        ),
        (TARGET, "!!python/module:antigravity ''"),
        ("seed: 42", "seed: !!python/object/apply:pathlib.Path.touch ['CANARY']"),
        ("seed: 42", "seed: 42\n  unknown: !!python/object/apply:os.system ['touch \"CANARY\"']"),
        ("seed: 42", "seed: 42\n  unknown: [!!python/object/apply:os.system ['touch \"CANARY\"']]"),
        ("seed: 42", "? !!python/object/apply:os.system ['touch \"CANARY\"']\n  : 42"),
        (
            "!!python/object:divff_nerfstudio.trainer.FastAdamConfig",
            "!!python/object:nerfstudio.engine.trainer.TrainerConfig",
        ),
        ("!!python/name:nerfstudio.data.utils.nerfstudio_collate.nerfstudio_collate", "!!python/name:os.system"),
        ("extract_options: ''", "extract_options: '--sources evil:Source'"),
        ("make_share_url: false", "make_share_url: true"),
        (
            "relative_model_dir: !!python/object/apply:pathlib.PosixPath\n- nerfstudio_models",
            "relative_model_dir: /etc",
        ),
        ("seed: 42", "seed: .nan"),
        ("seed: 42", "seed: forty"),
        ("temperature: 10.0", "temperature: .inf"),
        ("seed: 42", "seed: &a [*a]"),
        ("seed: 42", "seed: " + "[" * 500 + "]" * 500),
        ("seed: 42", "seed: [" + "1," * 30_000 + "]"),
        ("seed: 42", "seed: 42\n  seed: 43"),
        (
            "!!python/object:divff_nerfstudio.trainer.DivFFTrainerConfig",
            "!!python/object:nerfstudio.engine.trainer.TrainerConfig",
        ),
        (
            "!!python/object:divff_nerfstudio.trainer.DivFFTrainerConfig",
            "!!python/object:nerfstudio.configs.external_methods.ExternalMethodTrainerConfig",
        ),
    ],
)
def test_hostile_configurations(folder: Path, old: str, new: str) -> None:
    edit_config(folder, old, new.replace("CANARY", str(folder / "was here")))
    message = refused(folder, "config.yml", "refused")
    assert len(message) < 500 + len(str(folder))


def test_a_bomb_of_aliases_ends_soon(folder: Path) -> None:
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1]"] + [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path = folder / "run" / "config.yml"
    path.write_text(path.read_text() + "\n".join(lines) + "\n")
    refused(folder, "refused")


@pytest.mark.parametrize("content", ["", "hello", "[]", "a: b", "%", "\t- a", "!!python/object:a.B {}", "\0", "- - -"])
def test_what_is_no_configuration(folder: Path, content: str) -> None:
    (folder / "run" / "config.yml").write_text(content)
    refused(folder, "config.yml is refused")
    (folder / "run" / "config.yml").write_bytes(b"\xff\xfe\x00")
    refused(folder, "no UTF-8")
    (folder / "run" / "config.yml").unlink()
    refused(folder, "no such file")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:builtins.getattr [!!python/name:os '', system]",
        "!!python/object/apply:builtins.getattr [!!python/name:nerfstudio.cameras.cameras.CameraType '', __class__]",
        "!!python/object/apply:builtins.getattr [!!python/name:nerfstudio.cameras.cameras.Cameras '', generate_rays]",
        "!!python/object/apply:subprocess.Popen [['true']]",
        "!!python/object/apply:nerfstudio.utils.scripts.run_command ['true']",
        "!!python/name:nerfstudio.utils.scripts.run_command ''",
        "!!python/name:nerfstudio.utils.scripts.subprocess ''",
        "!!python/name:nerfstudio.configs.base_config.Path ''",
        "!!python/name:nerfstudio_evil.thing ''",
        "!!python/name:builtins.eval ''",
        "!!python/module:os ''",
        "!!python/object:nerfstudio.viewer.viewer.Viewer {}",
        "!!python/object/apply:pathlib.os.system ['true']",
        "!<tag:yaml.org,2002:python/object/apply:os.system> ['true']",
        "[1, 2",
    ],
)
@pytest.mark.parametrize("place", ["seed: 42", "data: null", "lr: 0.01"])
def test_objects_of_python_are_refused_anywhere(value: str, place: str) -> None:
    text = yaml.dump(our_configs()[0])
    assert place in text
    with pytest.raises(UnsafeConfigError, match=r"^config\.yml is refused because"):
        parse_config(text.replace(place, place.partition(" ")[0] + " " + value, 1), "config.yml", our_configs())


def test_tags_are_known_by_other_handles() -> None:
    text = "%TAG !p! tag:yaml.org,2002:python/\n---\n" + yaml.dump(our_configs()[0])
    assert parse_config(text, "config.yml", our_configs()) == our_configs()[0]
    with pytest.raises(UnsafeConfigError, match=r"os\.system"):
        parse_config(text.replace("seed: 42", "seed: !p!object/apply:os.system ['true']", 1), "", our_configs())


def test_every_method_reads_what_it_wrote(tmp_path: Path) -> None:
    for config in our_configs():
        (tmp_path / "config.yml").write_text(yaml.dump(config))
        assert read_config(tmp_path / "config.yml", our_configs()) == config


def test_paths_of_windows_and_options_of_other_versions(folder: Path) -> None:
    text = yaml.dump(our_configs()[0])
    assert "output_dir: !!python/object/apply:pathlib.PosixPath\n- outputs" in text
    for written, expected in (
        ("!!python/object/apply:pathlib.WindowsPath\n- outputs\n- a", "outputs/a"),
        ("!!python/object/apply:pathlib._local.WindowsPath ['C:\\', data]", "C:/data"),
        ("outputs/b", "outputs/b"),
    ):
        other = text.replace("!!python/object/apply:pathlib.PosixPath\n- outputs", written, 1)
        other = other.replace("seed: 42", "seed: 42\n  older_option: 3\n  older_list: [1, a]", 1).replace(
            "lr: 0.017", "lr: 17e-3"
        )
        config = parse_config(other, "config.yml", our_configs())
        assert config.output_dir.as_posix() == expected and config.machine.seed == 42
        assert not hasattr(config.machine, "older_option") and config.optimizers["grids"]["optimizer"].lr == 0.017
    assert parse_config(text.replace("seed: 42\n", "", 1), "config.yml", our_configs()).machine.seed == 42


def test_enumerations_as_python_up_to_3_11_3_writes_them() -> None:
    text = yaml.dump(our_configs()[0])
    old = "!!python/object/apply:nerfstudio.utils.writer.EventName\n      - Train Iter (time)"
    owner = "!!python/name:nerfstudio.utils.writer.EventName ''"
    new = f"!!python/object/apply:builtins.getattr\n      - {owner}\n      - ITER_TRAIN_TIME"
    assert old in text
    assert parse_config(text.replace(old, new, 1), "config.yml", our_configs()) == our_configs()[0]
    with pytest.raises(UnsafeConfigError):
        parse_config(text.replace(old, new.replace("ITER_TRAIN_TIME", "__class__"), 1), "config.yml", our_configs())


def test_the_list_of_what_is_allowed_is_short() -> None:
    allowed = allowed_classes(our_configs())
    foreign = {name for name in allowed if not name.startswith("divff_nerfstudio.")}
    assert len({*allowed.values()}) < 40  # some of ours have former names, too
    assert foreign == {  # each looked through: numbers, texts and places; what they set up is theirs or torch's Adam
        "nerfstudio.configs.base_config.LocalWriterConfig",
        "nerfstudio.configs.base_config.LoggingConfig",
        "nerfstudio.configs.base_config.MachineConfig",
        "nerfstudio.configs.base_config.ViewerConfig",
        "nerfstudio.data.pixel_samplers.PixelSamplerConfig",
        "nerfstudio.engine.optimizers.AdamOptimizerConfig",
        "nerfstudio.engine.optimizers.RAdamOptimizerConfig",
        "nerfstudio.engine.schedulers.CosineDecaySchedulerConfig",
        "nerfstudio.engine.schedulers.ExponentialDecaySchedulerConfig",
        "nerfstudio.engine.schedulers.MultiStepSchedulerConfig",
        "nerfstudio.utils.writer.EventName",
    }


def test_a_pickle_in_an_npz_would_run_otherwise(tmp_path: Path) -> None:
    array = np.empty(1, object)
    array[0] = Touch(tmp_path / "was here")
    np.savez(tmp_path / "train.npz", a=array)
    np.load(tmp_path / "train.npz", allow_pickle=True)["a"]
    assert (tmp_path / "was here").exists()
