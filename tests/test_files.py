"""Atomic writes, restricted pickles, checked configs, places for caches."""

from __future__ import annotations

import collections
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig

from divff_nerfstudio.datamanager import DivFFDataManagerConfig
from divff_nerfstudio.files import (
    DivffError,
    UnsafeConfigError,
    UnsafePickleError,
    atomic_path,
    check_config_yaml,
    is_writable,
    restricted_unpickle,
    split_words,
    user_cache_dir,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)
ARRAYS = hnp.arrays(
    st.sampled_from((np.bool_, np.uint8, ">i4", "<f4", np.float64, np.complex64, "S5", "<U3", ">U3")),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
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


@settings(max_examples=40, deadline=None)
@given(content=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_survives(tmp_path_factory: pytest.TempPathFactory, content: object, protocol: int) -> None:
    path = tmp_path_factory.getbasetemp() / "plain.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    assert restricted_unpickle(path) == content


@settings(max_examples=60, deadline=None)
@given(array=ARRAYS, fortran=st.booleans(), protocol=st.integers(0, pickle.HIGHEST_PROTOCOL), numpy_other=st.booleans())
def test_arrays_survive_as_either_numpy_wrote_them(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, fortran: bool, protocol: int, numpy_other: bool
) -> None:
    array = np.asfortranarray(array) if fortran else array
    content = pickle.dumps({"a": [array], "s": array.flat[0] if array.size else 0}, protocol)
    if numpy_other and protocol < 4:  # names are text here, without a length before them
        names = (b"numpy.core.", b"numpy._core.")
        old, new = names if names[0] in content else names[::-1]
        content = content.replace(old, new)
    path = tmp_path_factory.getbasetemp() / "array.pkl"
    path.write_bytes(content)
    read = restricted_unpickle(path)
    assert read["a"][0].dtype == array.dtype and read["a"][0].shape == array.shape
    np.testing.assert_array_equal(read["a"][0], array)
    if array.size:
        np.testing.assert_array_equal(read["s"], array.flat[0])
    assert read["a"][0].flags.writeable


def test_numpy_2_names_in_protocol_4_are_read(tmp_path: Path) -> None:
    written = pickle.dumps(np.arange(5, dtype=np.int16), 4)
    name = b"numpy.core.multiarray" if b"numpy.core.multiarray" in written else b"numpy._core.multiarray"
    for other in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        renamed = written.replace(bytes([len(name)]) + name, bytes([len(other)]) + other)
        size = int.from_bytes(renamed[3:11], "little") + len(other) - len(name)
        (tmp_path / "a.pkl").write_bytes(renamed[:3] + size.to_bytes(8, "little") + renamed[11:])
        assert restricted_unpickle(tmp_path / "a.pkl").tolist() == [0, 1, 2, 3, 4]


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("content", "word"),
    [
        (np.array([{}, 1], dtype=object), "object"),
        (np.zeros(2, dtype=[("x", "f4")]), "structured"),
        (collections.OrderedDict(a=1), "OrderedDict"),
        (collections.Counter("aa"), "Counter"),
        ({1, 2}, "set"),
        (Path("a"), "pathlib"),
        (np.datetime64("2020-01-01"), "datetime64"),
    ],
)
def test_everything_else_in_a_pickle_is_refused(tmp_path: Path, content: object, word: str, protocol: int) -> None:
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps([content], protocol))
    with pytest.raises(UnsafePickleError, match=word) as error:
        restricted_unpickle(path)
    assert str(path) in str(error.value)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"images": Evil(tmp_path / "was here")}))
    with pytest.raises(UnsafePickleError):
        restricted_unpickle(path)
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "was here").encode() + b"'\ntR.")
    with pytest.raises(UnsafePickleError, match="system"):
        restricted_unpickle(path)
    assert not (tmp_path / "was here").exists()


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 150), garbage=st.binary(max_size=8))
def test_damaged_pickles_give_our_error(tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.pkl"
    whole = pickle.dumps({"a": np.arange(20), "b": ["text", 1.0]})
    path.write_bytes(whole[:cut] + garbage)
    with pytest.raises(UnsafePickleError):
        restricted_unpickle(path)


def test_our_own_config_passes(tmp_path: Path) -> None:
    adam = {"optimizer": AdamOptimizerConfig(), "scheduler": ExponentialDecaySchedulerConfig()}
    config = TrainerConfig(
        method_name="divff",
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
