"""``divff download epic-diff`` against archives in the published layout, served on this machine."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import write_tiny_scene
from file_server import Served, serving
from test_unpack import files_below, write_tar, write_zip

from divff_nerfstudio.cli import main
from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.download.catalogue import CATALOGUE, SCENES


def weights(zipped: bool = True) -> bytes:
    """A file of `torch.save`, in its format or in the one before."""
    file = io.BytesIO()
    torch.save({"weight": torch.arange(1000.0)}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@pytest.fixture
def published(tmp_path) -> dict[str, Served]:
    """The archives as they are published: metadata, frames, checkpoints of two scenes."""
    metadata, frames, checkpoints = {}, {}, {}
    for name in ("P01_01", "P03_04"):
        scene = write_tiny_scene(tmp_path / "source" / name)
        for path in (scene / "meta.json", *(scene / "annotations").iterdir()):
            metadata[f"EPIC-Diff/{name}/{path.relative_to(scene)}"] = path.read_bytes()
        for path in (scene / "frames").iterdir():
            frames[f"296c4vv03j7lb2ejq3874ej3vm/{name}/frames/{path.name}"] = path.read_bytes()
        checkpoints[f"ckpts/rel/{name}/epoch=9.ckpt"] = name.encode()
    frames["296c4vv03j7lb2ejq3874ej3vm/readme.txt"] = b"licence"
    return {
        "/metadata": Served(write_tar(tmp_path / "m.tar.gz", metadata).read_bytes()),
        "/frames": Served(write_zip(tmp_path / "f.zip", frames).read_bytes()),
        "/neuraldiff": Served(write_tar(tmp_path / "c.tar.gz", checkpoints).read_bytes()),
        "/egovideo": Served(weights()),
        "/ooal": Served(b"<html>quota</html>", kind="text/html"),
    }


def download(served: dict[str, Served], root: Path, *words: str) -> int:
    with serving(served) as address:
        urls = [word for path in served for word in (path[1:], f"{address}{path}")]
        return main(["download", "epic-diff", "--root", str(root), *words, "--urls", *urls])


def test_only_the_asked_scenes_are_unpacked_and_can_be_opened(tmp_path, published, capsys):
    root = tmp_path / "EPIC-Diff"
    assert download(published, root, "--scenes", "P01_01") == 0
    assert {path.name for path in root.iterdir()} == {
        "P01_01", "archives", "README_296c4vv03j7lb2ejq3874ej3vm.txt",
    }  # fmt: skip
    scene = load_scene(root / "P01_01")
    assert len(scene) == 8
    shown = " ".join(capsys.readouterr().out.split())
    assert "P01_01: 8 frames of 24x16, complete" in shown and "no public release" in shown
    before = files_below(root)
    assert download(published, root, "--scenes", "P01_01", "P03_04") == 0
    assert len(load_scene(root / "P03_04")) == 8
    assert before.items() <= files_below(root).items()
    assert [len(published[path].requests) for path in ("/metadata", "/frames")] == [1, 1]


def test_checkpoints_and_weights_get_a_place(tmp_path, published):
    root = tmp_path / "EPIC-Diff"
    assert download(published, root, "--what", "neuraldiff", "egovideo", "--scenes", "P03_04") == 0
    found = files_below(root)
    assert found["checkpoints/neuraldiff/P03_04/epoch=9.ckpt"] == b"P03_04"
    assert found["weights/ckpt_4frames.pth"] == weights()
    assert not any("P01_01" in name for name in found)


def test_one_refusal_does_not_stop_the_rest_and_names_the_way_by_hand(tmp_path, published, capsys):
    root = tmp_path / "EPIC-Diff"
    assert download(published, root, "--what", "ooal", "metadata", "frames", "--scenes", "P01_01") == 1
    shown = capsys.readouterr()
    assert "complete" in shown.out and "ooal could not be had" in " ".join(shown.err.split())
    said = "".join(shown.out.split())
    assert CATALOGUE["ooal"].page in said and str(root / "weights" / "ooal.pth") in said
    (root / "weights" / "ooal.pth").write_bytes(weights(zipped=False))
    assert download(published, root, "--what", "ooal") == 0


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_end_early_are_not_recorded(tmp_path, published, capsys, zipped):
    """A server that says no length may break off without anybody noticing."""
    whole, path = weights(zipped), tmp_path / "root" / "weights" / "ckpt_4frames.pth"
    published["/egovideo"] = Served(whole[:-100])
    assert download(published, tmp_path / "root", "--what", "egovideo") == 1
    assert "damaged file" in " ".join(capsys.readouterr().out.split())
    assert not path.exists() and not path.with_name("ckpt_4frames.pth.json").exists()
    published["/egovideo"] = Served(whole)
    assert download(published, tmp_path / "root", "--what", "egovideo") == 0
    assert path.read_bytes() == whole


def test_a_truncated_archive_is_fetched_anew(tmp_path, published):
    root = tmp_path / "EPIC-Diff"
    whole = published["/metadata"].content
    published["/metadata"].content = whole[: len(whole) // 2]
    assert download(published, root, "--scenes", "P01_01") == 1
    assert not (root / "P01_01" / "meta.json").exists()
    published["/metadata"].content = whole
    assert download(published, root, "--scenes", "P01_01") == 0
    assert len(load_scene(root / "P01_01")) == 8


def test_missing_frames_are_counted(tmp_path, published, capsys):
    root = tmp_path / "EPIC-Diff"
    assert download(published, root, "--scenes", "P01_01", "--what", "metadata") == 0
    assert "P01_01: not complete" in " ".join(capsys.readouterr().out.split())


def test_an_archive_without_the_scene_is_said(tmp_path, published, capsys):
    assert download(published, tmp_path / "data", "--scenes", "P21_01") == 1
    assert "holds nothing of P21_01" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scenes", "P99_01"], "no scene P99_01"),
        (["--scenes"], "--scenes is ()"),
        (["--what"], "--what is ()"),
        (["--urls", "movies", "http://127.0.0.1"], "called movies"),
    ],
)
def test_options_that_make_no_sense(tmp_path, capsys, words, said):
    assert main(["download", "epic-diff", "--root", str(tmp_path), *words]) == 1
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("outcome", ["files", "refused", "nothing", "not installed"])
def test_a_cloud_folder(tmp_path, monkeypatch, capsys, outcome):
    def download_folder(url, output, quiet):
        assert url == CATALOGUE["divff"].url
        if outcome == "refused":
            raise RuntimeError("quota exceeded")
        if outcome == "nothing":
            return None
        Path(output).mkdir()
        (Path(output) / "P01_01.ckpt").write_bytes(b"weights")
        return ["P01_01.ckpt"]

    fake = SimpleNamespace(download_folder=download_folder) if outcome != "not installed" else None
    monkeypatch.setitem(sys.modules, "gdown", fake)
    status = main(["download", "epic-diff", "--root", str(tmp_path), "--what", "divff"])
    folder = tmp_path / "checkpoints" / "divff"
    if outcome == "files":
        assert status == 0 and [path.name for path in folder.iterdir()] == ["P01_01.ckpt"]
        monkeypatch.setitem(sys.modules, "gdown", None)
        assert main(["download", "epic-diff", "--root", str(tmp_path), "--what", "divff"]) == 0
    else:
        said = "".join(capsys.readouterr().out.split())
        assert status == 1 and CATALOGUE["divff"].page in said and str(folder) in said
        assert not folder.exists() and not list(tmp_path.rglob("*.tmp*"))


def test_the_catalogue_is_whole():
    assert len(SCENES) == 10
    for item in CATALOGUE.values():
        assert item.url.startswith("https://") and item.page.startswith("https://") and item.title and item.file_name
    assert json.dumps(sorted(CATALOGUE)).count("annotations") == 2
