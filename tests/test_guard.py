"""What nerfstudio's own commands read is looked at first."""

from __future__ import annotations

import copy
import operator
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import write_tiny_scene
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.scripts import train
from nerfstudio.utils.eval_utils import eval_setup

from divff_nerfstudio.run_config import UnsafeConfigError
from divff_nerfstudio.run_folder import RunError

MINIMAL = "!!python/object:nerfstudio.data.dataparsers.minimal_dataparser.MinimalDataParserConfig"
EXTERNAL = "!!python/object:nerfstudio.configs.external_methods.ExternalMethodTrainerConfig"
PARSER = "!!python/object:nerfstudio.data.dataparsers.nerfstudio_dataparser.NerfstudioDataParserConfig"


@pytest.mark.parametrize("method", ["nerfacto", "splatfacto", "instant-ngp", "vanilla-nerf", "tensorf", "divff"])
def test_files_of_all_methods_are_read(method: str) -> None:
    text = yaml.dump(all_methods[method])
    assert yaml.load(text, Loader=yaml.Loader) == all_methods[method]


@pytest.mark.parametrize("method", ["divff", "nerfacto"])
@pytest.mark.parametrize(
    "evil",
    [
        "!!python/object/apply:os.system ['touch \"{}\"']",
        "!!python/object/new:os.system ['touch \"{}\"']",
        '!!python/object/apply:builtins.exec [\'open("{}", "w")\']',
        "!!python/module:antigravity ''",
        "!!python/name:antigravity.webbrowser ''",
        "!!python/name:os.system ''",
        EXTERNAL + " {{pip_package: 'touch {}'}}",
        MINIMAL + " {{}}",
        "!!pyth%6Fn/object/apply:os.system ['touch \"{}\"']",
    ],
)
def test_hostile_files_of_any_method_are_refused(tmp_path: Path, method: str, evil: str) -> None:
    text = yaml.dump(all_methods[method]).replace("seed: 42", f"seed: {evil.format(tmp_path / 'was here')}", 1)
    with pytest.raises(UnsafeConfigError, match="is refused because"):
        yaml.load(text, Loader=yaml.Loader)
    assert not (tmp_path / "was here").exists() and "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "text",
    [
        "a: !!pyth%6Fn/object/apply:os.system ['touch \"{}\"']",
        "%TAG !e! tag:yaml.org,2002:pyth\n---\na: !e!on/object/apply:os.system ['touch \"{}\"']",
        "%TAG !e! tag:yaml.org,2002:pyth%6Fn/object/\n---\na: !e!apply:os.system ['touch \"{}\"']",
    ],
)
def test_tags_in_disguise_are_known(tmp_path: Path, text: str) -> None:
    with pytest.raises(UnsafeConfigError, match="is refused because"):
        yaml.load(text.format(tmp_path / "was here"), Loader=yaml.Loader)
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("content", ["", "- a\n", "a: 1\n"])
def test_what_describes_no_training_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yml").write_text(content)
    with pytest.raises(UnsafeConfigError, match="describes no training"):
        eval_setup(tmp_path / "config.yml")


def test_a_user_may_trust_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = yaml.dump(all_methods["nerfacto"]).replace(PARSER, MINIMAL, 1)
    with pytest.raises(UnsafeConfigError, match="DIVFF_TRUST_CONFIGS=1"):
        yaml.load(text, Loader=yaml.Loader)
    monkeypatch.setenv("DIVFF_TRUST_CONFIGS", "1")
    assert yaml.load(text, Loader=yaml.Loader).method_name == "nerfacto"


def test_a_training_with_the_options_of_a_run_finds_its_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_scene(tmp_path / "tiny", extras=False)
    config = copy.deepcopy(all_methods["divff"])
    config.timestamp, config.output_dir = "earlier", Path("out")
    config.pipeline.datamanager.data = config.pipeline.datamanager.dataparser.data = Path("tiny")
    path = tmp_path / "out" / "unnamed" / "divff" / "earlier" / "config.yml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.dump(config))
    begun = []
    monkeypatch.setattr(train, "launch", lambda **named: begun.append(named["config"]))
    monkeypatch.chdir("/")
    asked = copy.deepcopy(all_methods["divff"])
    asked.load_config, asked.output_dir = path, tmp_path / "out"
    monkeypatch.setattr(type(config), "save_config", lambda self: None)
    train.main(copy.deepcopy(asked))
    assert begun[0].pipeline.datamanager.data == tmp_path / "tiny"
    assert begun[0].get_base_dir() != path.parent and begun[0].run_dir is None
    # What is typed beside it: where the run is gone on with, and no more than that.
    asked.timestamp, asked.load_dir, asked.max_num_iterations = "earlier", path.parent, 77
    asked.vis, asked.viewer.websocket_port = "tensorboard", 7123
    train.main(copy.deepcopy(asked))
    assert begun[1].get_base_dir().name == "earlier"
    assert (begun[1].vis, begun[1].viewer.websocket_port) == ("tensorboard", 7123)
    assert (begun[1].load_dir, begun[1].max_num_iterations) == (path.parent, 77)
    for scene in ("pipeline.datamanager", "pipeline.datamanager.dataparser"):
        moved = copy.deepcopy(asked)
        operator.attrgetter(scene)(moved).data = tmp_path / "moved"
        train.main(moved)
        assert begun[-1].pipeline.datamanager.data == tmp_path / "moved"
    asked.pipeline.model.mask_weight = 0.2
    with pytest.raises(RunError, match=r"--pipeline\.model\.mask-weight is typed beside it"):
        train.main(copy.deepcopy(asked))
    other = copy.deepcopy(all_methods["divff-paper"])
    other.load_config = path
    with pytest.raises(RunError, match="type `ns-train divff`"):
        train.main(other)


def test_other_yaml_is_none_of_its_business() -> None:
    assert yaml.load("a: [1, 2]", Loader=yaml.Loader) == {"a": [1, 2]}


@pytest.mark.parametrize("command", ["ns-eval"])
def test_the_look_stands_in_nerfstudios_commands(tmp_path: Path, command: str) -> None:
    config = tmp_path / "config.yml"
    evil = f"seed: !!python/object/apply:os.system ['touch \"{tmp_path / 'was here'}\"']"
    config.write_text(yaml.dump(all_methods["divff"]).replace("seed: 42", evil, 1))
    program = Path(sys.executable).with_name(command)
    done = subprocess.run([program, "--load-config", config], cwd=tmp_path, capture_output=True, text=True, check=False)
    said = " ".join(done.stderr.split())
    assert done.returncode and "is refused because it asks for python/object/apply:os.system" in said
    assert "Traceback" not in said and not (tmp_path / "was here").exists()
