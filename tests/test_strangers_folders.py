"""Commands in a stranger's folder, as programs: nothing that lies in it is imported or run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tiny_scene
from safetensors.torch import save_file
from stranger_programs import STARTED
from test_runs_of_earlier_versions import RUNS
from test_strangers_pictures import EPS

from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.features.encoder_loading import CONFIG, DEMO_ENCODER
from divff_nerfstudio.features.store import FeatureWriter, FrameFeatures, StoreHeader
from divff_nerfstudio.features.text_towers import TOKENIZER

MODULES = ("lz4", "pandas", "wandb", "librosa", "tyro", "torch", "numpy", "yaml", "runpy", "evil", "sitecustomize")
RUNNER = Path(__file__).with_name("stranger_programs.py")
QUESTION = ("--text", "cup", "--time", "0.5")
METHOD = "!!python/object:divff_nerfstudio.trainer.SplatTrainerConfig"
EXTERNAL = "!!python/object:nerfstudio.configs.external_methods.ExternalMethodTrainerConfig"
PARSER = "!!python/object:divff_nerfstudio.data.epic_diff.EpicDiffDataParserConfig"


@dataclass
class Theirs:
    """A stranger's folder, and what shall be typed in it."""

    folder: Path
    commands: list[list[str]] = field(default_factory=list)
    expected: list[str | None] = field(default_factory=list)
    """What each command shall say when it refuses; None: it shall end well."""

    def type(self, *words: object, refused: str | None = None) -> None:
        """Notes a command."""
        self.commands.append([str(word) for word in words])
        self.expected.append(refused)

    def run(self) -> list[str]:
        """Runs the commands; each shall end as it should. Returns what they said."""
        given, found = self.folder.parent / "commands.json", self.folder.parent / "results.json"
        given.write_text(json.dumps(self.commands))
        done = start(self.folder, sys.executable, RUNNER, given, found)
        assert found.is_file() and done.returncode == 0, done.stderr[-3000:]
        results = json.loads(found.read_text())
        assert len(results) == len(self.commands), done.stderr[-3000:]
        for words, expected, (status, said) in zip(self.commands, self.expected, results, strict=True):
            check(" ".join(words), expected, status, said)
        return [said for _, said in results]

    def traces(self) -> list[str]:
        """What has run that should not."""
        return [path.name for path in self.folder.parent.rglob("* ran")]


def check(words: str, expected: str | None, status: int, said: str) -> None:
    """Expects a command to have ended well, or with a sentence."""
    plain = " ".join(said.split())
    assert "Traceback" not in plain, f"{words}: {plain[-3000:]}"
    assert (status != 0) == (expected is not None), f"{words} ended with {status}: {plain[-3000:]}"
    assert expected is None or expected in plain, f"{words}: {plain[-3000:]}"


def start(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs a program in a folder, where programs of the folder are found, too."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env["PATH"] = f"{folder}{os.pathsep}{env['PATH']}"
    return subprocess.run(list(map(str, words)), cwd=folder, env=env, capture_output=True, text=True, check=False)


def leave_traps(folder: Path, *names: str) -> None:
    """Puts modules, programs and settings into a folder that tell when they are run."""
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(folder / f'{name} ran')!r}, 'w').close()\n")
    for name in ("gs", "latex"):
        (folder / name).write_text(f"#!/bin/sh\ntouch '{folder / name} ran'\n")
        (folder / name).chmod(0o755)
    (folder / "matplotlibrc").write_text("text.usetex: True\nbackend: module://evil\n")


@pytest.fixture
def theirs(tmp_path: Path) -> Theirs:
    """A stranger's folder: a scene with features, "tiny", a run on it, "run", and traps."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    shutil.copytree(RUNS / "divff-splat", folder / "run")
    leave_traps(folder, *MODULES, "divff_nerfstudio")
    return Theirs(folder)


def test_nothing_in_a_strangers_folder_is_imported_or_run(theirs: Theirs) -> None:
    write_stores(write_tiny_scene(theirs.folder / "tiny"))
    usual_commands(theirs)
    hostile_encoders(theirs)
    hostile_pictures(theirs)
    hostile_configs(theirs)
    inside = theirs.folder / "bare"
    if sys.version_info < (
        3,
        11,
    ):  # `python -m` itself imports it, before anything of ours
        (inside / "runpy.py").unlink()
    words = ("-m", "divff_nerfstudio.cli", "view", "--load-config", "../run_call/config.yml")
    with ThreadPoolExecutor(1) as pool:
        as_module = pool.submit(start, inside, sys.executable, *words)
        said = theirs.run()
    done = as_module.result()
    check("python -m", "is refused because", done.returncode, done.stdout + done.stderr)
    assert sum(STARTED in text for text in said) == 2
    assert (inside / "features" / "image" / "header.json").is_file(), "features were extracted on the way"
    assert not theirs.traces()


def write_stores(root: Path) -> None:
    """Features of a scene, random, as long as those that the run was trained on, which the demo encoder answers for."""
    scene, random = load_scene(root), np.random.default_rng(0)
    for kind in ("image", "video", "regulariser"):
        header = StoreHeader(
            kind=kind,
            source="random",
            model="demo",
            fingerprint="",
            dimension=64,
            frame_ids=scene.frame_ids.tolist(),
            image_size=[scene.height, scene.width],
            text_encoder=None if kind == "regulariser" else {"encoder": "demo"},
        )
        with FeatureWriter(root / "features" / kind, header) as writer:
            for _ in scene.frame_ids:
                table = random.normal(size=(6, 64))
                table /= np.linalg.norm(table, axis=1, keepdims=True)
                writer.append(FrameFeatures(np.arange(6, dtype=np.uint16).reshape(2, 3), table))
            writer.finish()


def usual_commands(theirs: Theirs) -> None:
    """What is typed in a folder of modules and programs that wait to be taken for others."""
    folder, config = theirs.folder, ("--load-config", "run/config.yml")
    shutil.copytree(folder / "tiny", folder / "bare", ignore=shutil.ignore_patterns("features", ".divff_cache"))
    leave_traps(folder / "bare", *MODULES)
    theirs.type("divff", "query", *config, *QUESTION, "--output", "answer")
    theirs.type("divff", "query", *config, "--text", "cup", "--over-time", "--moments", 2, "--output", "answer")
    theirs.type("divff", "evaluate", *config, "--tasks", "masks", "--frames", 1, "--output", "scores")
    theirs.type("ns-eval", *config, "--output-path", "scores.json")
    render = ("--output-path", "pictures", "--rendered-output-names", "rgb", "features_pca")
    theirs.type("ns-render", "dataset", *config, *render, "--split", "test")
    theirs.type("divff", "view", *config)
    theirs.type("ns-viewer", *config, "--viewer.websocket-host", "127.0.0.1")
    train = ("--data", "bare", "--max-num-iterations", 1, "--output-dir", "out", "--vis", "tensorboard")
    train += ("--pipeline.datamanager.auto-extract", "True", "--machine.device-type", "cpu")
    train += ("--pipeline.datamanager.extract-options=--encoder demo",)
    theirs.type("ns-train", "divff-splat", *train)


def variant(theirs: Theirs, name: str, part: str = "run") -> Path:
    """A copy of the run, or of the scene with its features, under another name."""
    copied = theirs.folder / name
    shutil.copytree(theirs.folder / part, copied, ignore=shutil.ignore_patterns(".divff_cache"))
    return copied


def hostile_encoders(theirs: Theirs) -> None:
    """Stores of features whose text encoder is code, or a folder that brings some."""

    def asked(name: str, entry: dict, refused: str) -> None:
        path = variant(theirs, name, "tiny") / "features" / "image" / "header.json"
        header = json.loads(path.read_text())
        header["text_encoder"] = entry
        path.write_text(json.dumps(header))
        words = ("--load-config", "run/config.yml", "--data", name, *QUESTION, "--output", "answer")
        theirs.type("divff", "query", *words, refused=refused)

    asked("code", {"family": "evil:X"}, "files do not decide what is imported")
    asked("code_inside", {"family": "tiny.evil:X"}, "files do not decide what is imported")
    for name, change, tokenizer in (
        ("remote", {"tokenizer_kwargs": {"trust_remote_code": True}}, {}),
        ("mapped", {}, {"auto_map": {"AutoTokenizer": ["evil.X", None]}, "tokenizer_class": "X"}),
        ("elsewhere", {"hf_tokenizer_name": "tiny"}, {}),
        ("tower", {"hf_model_name": "transformed"}, {}),
    ):
        folder = theirs.folder / f"encoder_{name}"
        shutil.copytree(DEMO_ENCODER, folder)
        description = json.loads((folder / CONFIG).read_text())
        description["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "somebody/words"} | change
        (folder / CONFIG).write_text(json.dumps(description))
        (folder / TOKENIZER).write_text(json.dumps(tokenizer))
        leave_traps(folder, "evil")
        asked(f"of_{name}", {"encoder": folder.name}, "may bring code with it")
    folder = theirs.folder / "transformed"
    folder.mkdir()
    leave_traps(folder, "evil")
    kinds = ("AutoConfig", "AutoModel", "XCLIPModel", "Dinov2Model", "AutoTokenizer", "AutoImageProcessor")
    mapped = {"auto_map": dict.fromkeys(kinds, "evil.X"), "trust_remote_code": True}
    for file in ("config.json", TOKENIZER, "preprocessor_config.json", "processor_config.json"):
        (folder / file).write_text(json.dumps(mapped | {"model_type": "evil", "architectures": ["X"]}))
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    asked("of_transformers", {"family": "xclip", "weights": folder.name}, "cannot be used")
    bare = variant(theirs, "no_features", "tiny")
    shutil.rmtree(bare / "features")
    words = ("--data", bare.name, "--sources", "regulariser", "--dinov2.weights", folder.name, "--device", "cpu")
    theirs.type("divff", "extract", *words, refused="cannot be used")


def hostile_pictures(theirs: Theirs) -> None:
    """Frames, masks and pictures of the video that are programs for Ghostscript."""
    for name, place in (("eps", "frames"), ("eps_mask", "annotations")):
        scene = variant(theirs, name, "tiny")
        next((scene / place).iterdir()).write_bytes(EPS)
        words = ("--load-config", "run/config.yml", "--data", name)
        theirs.type("divff", "evaluate", *words, "--tasks", "masks", "--output", "scores", refused="no picture in")
    theirs.type("ns-train", "divff-splat", "--data", "eps", "--output-dir", "out", refused="no picture in")
    theirs.type("divff", "extract", "--data", "eps", "--encoder", "demo", refused="no picture in")
    folder = theirs.folder / "photos"
    folder.mkdir()
    (folder / "frame_00001.png").write_bytes(EPS)
    theirs.type("divff", "convert", "video", "photos/frame_00001.png", "converted", refused="frame_00001.png")


def hostile_configs(theirs: Theirs) -> None:
    """Files of runs that call, import or unpickle something, opened by each of the programs."""
    folder = theirs.folder
    array = np.empty(1, object)
    array[0] = Touch(folder / "unpickled ran")
    (folder / "minimal").mkdir()
    np.savez(folder / "minimal" / "train.npz", a=array)
    text = (folder / "run" / "config.yml").read_text()
    seed = next(line for line in text.splitlines() if line.strip().startswith("seed:"))
    call = f"!!python/object/apply:os.system ['touch \"{folder / 'called'} ran\"']"
    package = f"pip_package: touch '{folder / 'package'} ran'"
    changes: dict[str, Callable[[str], str]] = {
        "call": lambda text: text.replace(seed, seed.replace("42", call)),
        "module": lambda text: text.replace(seed, seed.replace("42", "!!python/module:evil ''")),
        "class": lambda text: text.replace(seed, seed.replace("42", "!!python/name:evil.X ''")),
        "minimal": lambda text: text.replace(
            PARSER, "!!python/object:nerfstudio.data.dataparsers.minimal_dataparser.MinimalDataParserConfig"
        ),
        "external": lambda text: text.replace(METHOD, f"{EXTERNAL}\n{package}"),
        "only_external": lambda _: f"{EXTERNAL}\n{package}\nmethod_name: x\n",
    }
    programs: tuple[tuple[str, ...], ...] = (
        ("ns-eval", "--output-path", "scores.json"),
        ("ns-render", "interpolate", "--output-path", "film.mp4"),
        ("ns-render", "dataset", "--output-path", "pictures"),
        ("ns-viewer",),
        ("ns-train", "divff-splat"),
        ("divff", "query", *QUESTION, "--output", "answer"),
        ("divff", "view"),
        ("divff", "export", "--output", "cloud.ply"),
    )
    for number, (name, change) in enumerate(changes.items()):
        path = variant(theirs, f"run_{name}") / "config.yml"
        changed = change(path.read_text())
        assert changed != path.read_text(), name
        path.write_text(changed)
        for words in (programs[number], programs[(number + 5) % len(programs)]):
            theirs.type(*words, "--load-config", f"run_{name}/config.yml", refused="is refused because")


class Touch:
    """Makes a file when it is unpickled the usual way."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_traps_work(theirs: Theirs) -> None:
    start(theirs.folder, sys.executable, "-c", "import lz4, evil, subprocess; subprocess.run('gs')")
    assert sorted(theirs.traces()) == ["evil ran", "gs ran", "lz4 ran"]
    evil = f"a: !!python/object/apply:os.system ['touch \"{theirs.folder / 'called'} ran\"']"
    start(theirs.folder, sys.executable, "-I", "-c", f"import yaml; yaml.load({evil!r}, yaml.UnsafeLoader)")
    assert "called ran" in theirs.traces()
