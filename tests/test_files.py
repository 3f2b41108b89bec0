"""Atomic writes, restricted pickles, checked configs, places for caches."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig

from divff_nerfstudio.datamanager import DivFFDataManagerConfig
from divff_nerfstudio.files import (
    DivffError,
    UnsafeConfigError,
    atomic_path,
    check_config_yaml,
    is_writable,
    split_words,
    user_cache_dir,
)


def test_atomic_path_replaces_only_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "values.npy"
    with atomic_path(target) as path:
        assert path.suffix == ".npy" and path.parent == target.parent and not target.exists()
        np.save(path, np.arange(3))
    with pytest.raises(ValueError, match="half way"), atomic_path(target) as path:
        path.write_text("half")
        raise ValueError("half way")
    assert np.load(target).tolist() == [0, 1, 2]
    assert [p.name for p in target.parent.iterdir()] == ["values.npy"]


def test_atomic_path_takes_a_directory(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "folder") as path:
        path.mkdir()
        (path / "a").touch()
    assert (tmp_path / "folder" / "a").is_file()


def test_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"

    def write(value: int) -> None:
        for _ in range(20):
            with atomic_path(target) as path:
                path.write_bytes(bytes([value]) * 10000)

    threads = [threading.Thread(target=write, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = target.read_bytes()
    assert len(content) == 10000 and len(set(content)) == 1
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_without_write_bits_is_not_writable_even_for_an_administrator(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    assert is_writable(folder) and not is_writable(tmp_path / "absent")
    folder.chmod(0o555)
    assert not is_writable(folder)


def test_cache_places_differ_by_scene_and_follow_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = user_cache_dir(tmp_path / "a" / "P01"), user_cache_dir(tmp_path / "b" / "P01")
    assert first != second and first.name.startswith("P01-") and first.parent == second.parent
    monkeypatch.delenv("DIVFF_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache_dir(tmp_path / "P01").parent == tmp_path / "xdg" / "divff"
    (tmp_path / "home").mkdir(mode=0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    assert tmp_path / "home" not in user_cache_dir(tmp_path / "P01").parents


def test_our_own_config_passes(tmp_path: Path) -> None:
    adam = {"optimizer": AdamOptimizerConfig(), "scheduler": ExponentialDecaySchedulerConfig()}
    config = TrainerConfig(
        method_name="another",
        data=Path("scene"),
        pipeline=VanillaPipelineConfig(datamanager=DivFFDataManagerConfig(data=Path("scene"))),
        optimizers={"fields": adam},
    )
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump(config))
    check_config_yaml(path)
    assert yaml.load(path.read_text(), Loader=yaml.Loader) == config


def test_members_of_enumerations_pass_as_every_python_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    owner = "nerfstudio.cameras.cameras.CameraType"
    call = "!!python/object/apply:builtins.getattr"
    for text in (
        f"- {call} [&a !!python/name:{owner} '', FISHEYE]\n- {call} [*a, PERSPECTIVE]\n",
        f"!!python/object/apply:builtins.getattr\n- !!python/name:{owner} ''\n- PERSPECTIVE\n",
        f"!!python/object/apply:{owner}\n- 1\n",
    ):
        path.write_text(text)
        check_config_yaml(path)
        read = yaml.load(path.read_text(), Loader=yaml.Loader)
        assert (read[-1] if isinstance(read, list) else read).name == "PERSPECTIVE"


@pytest.mark.parametrize(
    "content",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/object/apply:builtins.getattr [!!python/name:os '', system]",
        "- &a !!python/name:os ''\n- !!python/object/apply:builtins.getattr [*a, system]",
        "!!python/object/apply:builtins.getattr [!!python/name:nerfstudio.cameras.cameras.CameraType '', __class__]",
        "!!python/object/apply:builtins.getattr [!!python/name:nerfstudio.cameras.cameras.Cameras '', generate_rays]",
        "!!python/object/apply:subprocess.Popen [['true']]",
        "!!python/object/new:os.system ['true']",
        "!!python/object/apply:nerfstudio.utils.scripts.run_command ['true']",
        "a: !!python/name:nerfstudio.utils.scripts.run_command ''",
        "a: !!python/name:nerfstudio.utils.scripts.subprocess ''",
        "a: !!python/name:nerfstudio.utils.scripts.nothing ''",
        "a: !!python/name:nerfstudio.configs.base_config.Path ''",
        "a: !!python/name:nerfstudio_evil.thing ''",
        "a: !!python/name:builtins.eval ''",
        "a: !!python/module:os ''",
        "!!python/object:nerfstudio.viewer.viewer.Viewer {}",
        "!!python/object/apply:pathlib.os.system ['true']",
        "!<tag:yaml.org,2002:python/object/apply:os.system> ['true']",
        "%TAG !p! tag:yaml.org,2002:python/\n---\n!p!object/apply:os.system ['true']",
        "a: [1, 2",
    ],
)
def test_other_configs_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(content)
    with pytest.raises(UnsafeConfigError) as error:
        check_config_yaml(path)
    assert str(path) in str(error.value)


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsafeConfigError, match=r"no such file"):
        check_config_yaml(tmp_path / "config.yml")


def test_words_are_taken_apart_as_in_a_shell() -> None:
    assert split_words("--a 'b c' --d=\"e f\"", "--options") == ["--a", "b c", "--d=e f"]
    with pytest.raises(DivffError, match=r"--options .*quotation"):
        split_words("--a 'b c", "--options")
