"""Weights of other programs are read, and nothing that their files ask for is run."""

from __future__ import annotations

import collections
import io
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from divff_nerfstudio.checkpoints import CheckpointError, read_checkpoint, read_weights, require_shapes


class Touch:
    """Makes a file when it is unpickled the usual way."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return open, (str(self.target), "w")


class Shell:
    """Runs a command when it is unpickled the usual way."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.target}",)


@pytest.fixture
def lightning_class(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that pickles under the name of Lightning's, though Lightning is not there."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    found = type("ModelCheckpoint", (), {"__module__": module.__name__, "__qualname__": "ModelCheckpoint"})
    module.ModelCheckpoint = found  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


def save(content: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def test_a_lightning_checkpoint_is_read(parity_dir: Path) -> None:
    path = parity_dir / "lightning115_callbacks_tiny.ckpt"
    content = read_checkpoint(path)
    assert content["global_step"] == 12345
    (entry,) = content["callbacks"].values()
    assert entry["monitor"] == "val/psnr"
    weights = read_weights(path)
    assert list(weights) == ["embedding_t.W"] and weights["embedding_t.W"].shape == (21, 17)
    assert not {name.partition(".")[0] for name in sys.modules} & {"pytorch_lightning", "lightning"}


@pytest.mark.parametrize("zipped", [True, False])
def test_lightnings_classes_are_stood_in_for(tmp_path: Path, lightning_class: type, zipped: bool) -> None:
    instance = lightning_class()
    instance.secret = 1  # pyright: ignore[reportAttributeAccessIssue]
    content = {"callbacks": {lightning_class: {}}, "x": instance, "state_dict": {"w": torch.ones(2)}}
    path = save(content, tmp_path / "a.ckpt", zipped)
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        del sys.modules[name]
    assert torch.equal(read_weights(path)["w"], torch.ones(2))
    assert not isinstance(read_checkpoint(path)["x"], lightning_class)


def test_weights_without_a_checkpoint_around_them_are_read(tmp_path: Path) -> None:
    state = collections.OrderedDict(a=torch.ones(2, dtype=torch.float16), n=torch.tensor(3))
    weights = read_weights(save(state, tmp_path / "a.pth"))
    assert weights["a"].dtype == torch.float32 and weights["n"].dtype == torch.int64


@pytest.mark.parametrize("hostile", [Touch, Shell])
@pytest.mark.parametrize("how", ["pickle", "zip", "legacy", "record"])
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path: Path, hostile: type, how: str) -> None:
    target, path = tmp_path / "was_run", tmp_path / "x.ckpt"
    content = {"state_dict": {"w": torch.ones(1)}, "callbacks": {"x": hostile(target)}}
    if how == "pickle":
        path.write_bytes(pickle.dumps(hostile(target), protocol=2))
    elif how == "record":
        save({"w": torch.ones(1)}, tmp_path / "good.ckpt")
        with zipfile.ZipFile(tmp_path / "good.ckpt") as good, zipfile.ZipFile(path, "w") as bad:
            for name in good.namelist():
                data = pickle.dumps(hostile(target), protocol=2) if name.endswith("data.pkl") else good.read(name)
                bad.writestr(name, data)
    else:
        save(content, path, zipped=how == "zip")
    with pytest.raises(CheckpointError, match="is refused because it asks for") as raised:
        read_weights(path)
    assert not target.exists()
    message = str(raised.value)
    assert str(path) in message and "\n" not in message and message.count(". ") == 0
    assert ("io.open" if hostile is Touch else "posix.system") in message


def test_a_hostile_pickle_would_run_otherwise(tmp_path: Path) -> None:
    """The tests above would prove nothing if the pickles were harmless."""
    pickle.loads(pickle.dumps(Touch(tmp_path / "was_run")))
    assert (tmp_path / "was_run").exists()


def damaged(folder: Path) -> dict[str, Path]:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.ones(1000)}}, buffer)
    contents = {
        "empty": b"",
        "text": b"epoch=9.ckpt\nnot here",
        "cut": buffer.getvalue()[:2000],
        "cut_at_the_end": buffer.getvalue()[:-30],
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(folder / "zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    return {name: folder / name for name in (*contents, "zip")}


def test_what_is_no_checkpoint_is_refused_in_one_sentence(tmp_path: Path) -> None:
    for path in damaged(tmp_path).values():
        with pytest.raises(CheckpointError, match="is no readable checkpoint"):
            read_weights(path)
    with pytest.raises(CheckpointError, match="is a folder"):
        read_weights(tmp_path)
    with pytest.raises(CheckpointError, match="There is no file"):
        read_weights(tmp_path / "absent.ckpt")


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"state_dict": {}},
        {"state_dict": {"w": 1}},
        {"state_dict": [torch.ones(1)]},
        {"epoch": 3},
        {1: torch.ones(1)},
        torch.ones(1),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CheckpointError, match="no dictionary of named tensors"):
        read_weights(save(content, tmp_path / "a.ckpt"))


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = {"good": torch.ones(1), "bad": torch.tensor([float("nan")]), "worse": torch.tensor([float("inf")])}
    with pytest.raises(CheckpointError, match="not finite in bad, worse"):
        read_weights(save(state, tmp_path / "a.ckpt"))


SHAPES = st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 3), st.integers(1, 3)))


@given(SHAPES, SHAPES)
def test_every_difference_is_told(found: dict, expected: dict) -> None:
    differing = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
    try:
        require_shapes("x.ckpt", "thing", found, expected)
    except CheckpointError as error:
        listed = str(error).partition("(")[2]
        assert differing and all(f" {name}" in listed for name in differing)
        assert not any(f" {name}," in listed for name in (found.keys() & expected.keys()) - differing)
    else:
        assert not differing
