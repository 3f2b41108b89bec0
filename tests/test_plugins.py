"""What is imported: what the user has named, installed or allowed, never what a file or the working directory holds."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from divff_nerfstudio import plugins
from divff_nerfstudio.evaluation.baselines.base import BASELINES, Baseline
from divff_nerfstudio.features.encoder_loading import load_encoder
from divff_nerfstudio.features.pretrained import EncoderError
from divff_nerfstudio.features.sources import SOURCES, FeatureSource
from divff_nerfstudio.features.text import FAMILIES, PhraseEncoder, TextEncoder
from divff_nerfstudio.plugins import PluginError, class_of_file, classes_named, module_command, plugin_class

CODE = """
from pathlib import Path
Path({canary!r}).touch()
from divff_nerfstudio.features.text import PhraseEncoder
class X(PhraseEncoder):
    name, fingerprint, dimension = "x", "", 3
    def __init__(self, entry): pass
    def encode_text(self, phrases): raise NotImplementedError
"""


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stranger's folder with code in it, in the working directory; what it would leave behind is "was here"."""
    folder = tmp_path / "their_scene"
    folder.mkdir()
    code = CODE.format(canary=str(tmp_path / "was here"))
    for name in ("evil_words.py", "their_scene/evil.py", "lz4.py", "pandas.py", "wandb.py", "librosa.py"):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    yield tmp_path  # pyright: ignore[reportReturnType]
    for name in ("evil_words", "their_scene.evil", "their_scene"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "family", ["their_scene.evil:X", "evil_words:X", "os:system", "pathlib:Path", "x", "", ":", "a b:c"]
)
def test_a_header_names_nothing_that_is_imported(scene: Path, family: str) -> None:
    before, modules = list(sys.path), set(sys.modules)
    with pytest.raises(PluginError, match="files do not decide what is imported") as error:
        TextEncoder({"family": family})
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert not (scene / "was here").exists() and sys.path == before
    assert not {"evil_words", "their_scene", "their_scene.evil"} & (set(sys.modules) - modules)


def test_the_message_says_how_to_allow_it_and_that_is_enough(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match=r"DIVFF_PLUGINS=evil_words:X in the environment, its folder in PYTHONPATH"):
        TextEncoder({"family": "evil_words:X"})
    monkeypatch.setenv("DIVFF_PLUGINS", "evil_words:X")
    with pytest.raises(PluginError, match="cannot be imported"):  # allowed, but the working directory is no place
        TextEncoder({"family": "evil_words:X"})
    monkeypatch.syspath_prepend(scene)
    assert TextEncoder({"family": "evil_words:X"}).dimension == 3
    with pytest.raises(PluginError, match="DIVFF_PLUGINS"):
        TextEncoder({"family": "their_scene.evil:X"})


def test_an_installed_package_offers_classes_by_name(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = EntryPoint("words", "evil_words:X", plugins.ENTRY_POINTS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [offered] if group == plugins.ENTRY_POINTS else [])
    monkeypatch.syspath_prepend(scene)
    for name in ("words", "evil_words:X"):
        assert TextEncoder({"family": name}).dimension == 3
    assert plugin_class("words", PhraseEncoder, "text encoder", FAMILIES).__name__ == "X"


@pytest.mark.parametrize("base", [FeatureSource, Baseline])
def test_the_working_directory_stays_out_of_the_path(scene: Path, base: type) -> None:
    before = list(sys.path)
    with pytest.raises(PluginError, match=r"PYTHONPATH=\. before the command"):
        plugin_class("evil_words:X", base, "thing", {})
    for name in ("nearest", "segments"):
        registered = {**SOURCES, **BASELINES}
        plugin_class(name, object, "thing", registered)
    assert sys.path == before and not (scene / "was here").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_what_it_says(family: str) -> None:
    assert issubclass(class_of_file(family, PhraseEncoder, "text encoder", FAMILIES), PhraseEncoder)
    assert class_of_file(FAMILIES[family], PhraseEncoder, "text encoder", FAMILIES)


def test_a_program_of_ours_imports_nothing_from_the_working_directory(scene: Path) -> None:
    for name in ("runpy.py", "json.py", "divff_nerfstudio.py", "argparse.py"):
        (scene / name).write_text(CODE.format(canary=str(scene / "was here")))
    for command, said in (
        (("json.tool", "--help"), "json"),
        (("divff_nerfstudio.cli", "--version"), "divff-nerfstudio"),
    ):
        line = module_command(*command)
        done = subprocess.run(line, cwd=scene, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and said in done.stdout, done.stderr
    assert not (scene / "was here").exists()


def test_the_working_directory_would_be_imported_from_otherwise(scene: Path) -> None:
    (scene / "json.py").write_text(CODE.format(canary=str(scene / "was here")).replace("from divff", "# from divff"))
    subprocess.run([sys.executable, "-m", "json.tool", "--help"], cwd=scene, capture_output=True, check=False)
    assert (scene / "was here").exists()


def test_classes_in_a_command_line_are_found() -> None:
    words = ["--sources", "image", "my.module:Source", "--segments.segmenter=other:One", "--data", "/a:b/c"]
    assert classes_named(words) == ["my.module:Source", "other:One"]


@pytest.mark.parametrize(
    "key",
    [
        {"hf_tokenizer_name": "somebody/words", "tokenizer_kwargs": {"trust_remote_code": True}},
        {"hf_tokenizer_name": "their_scene"},
        {"hf_model_name": "their_scene"},
    ],
)
def test_an_encoders_folder_brings_no_code(scene: Path, key: dict) -> None:
    folder = scene / "their_scene"
    config = {"model_cfg": {"embed_dim": 4, "vision_cfg": {}, "text_cfg": key}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.X", None]}}))
    with pytest.raises(EncoderError, match="may bring code with it"):
        load_encoder(str(folder))
    assert not (scene / "was here").exists()
