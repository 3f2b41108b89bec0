"""Damage to what `divff convert` reads ends in the same cameras, or in one sentence.

Files without redundancy cannot tell one number from another: where a damaged file is taken, what is read must be what
it says now, by a second reading that knows nothing of the first.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import room
from mutations import mutations_of, of_bytes, outcome
from PIL import Image

from divff_nerfstudio.convert.colmap import Model, read_model
from divff_nerfstudio.convert.epic_fields import read_epic_fields
from divff_nerfstudio.convert.nerfstudio import read_nerfstudio
from divff_nerfstudio.convert.pictures import ArchiveFrames
from divff_nerfstudio.errors import DivffError


def is_told(found: object) -> bool:
    """Whether it is an error of ours, in one sentence."""
    if not isinstance(found, DivffError):
        return False
    text = str(found)
    assert "\n" not in text.strip() and text.rstrip().endswith(".") and len(text) < 2000, text
    return True


def each(path: Path, tmp_path: Path, places: int):
    """Damaged copies of a file, beside whatever lies beside it."""
    original = path.read_bytes()
    for i, mutation in enumerate(mutations_of(path, seed=12, places=places)):
        (tmp_path / str(i)).mkdir()
        copy = Path(shutil.copy(path, tmp_path / str(i) / path.name))
        mutation.apply(copy)
        yield mutation.name, copy
    assert path.read_bytes() == original


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = room.write_transforms(tmp_path_factory.mktemp("fuzz") / "data")
    path = folder / "transforms.json"
    meta = json.loads(path.read_text())
    for i, frame in enumerate(sorted(meta["frames"], key=lambda frame: frame["file_path"])):
        frame["time"] = i / 10
        frame["file_path"] = str(folder / frame["file_path"])
    meta["ply_file_path"] = str(folder / "points.ply")
    path.write_text(json.dumps(meta))
    return folder


def test_transforms(data, tmp_path):
    taken = told = 0
    for name, path in each(data / "transforms.json", tmp_path, 24):
        found = outcome(lambda path=path: read_nerfstudio(path, "number"))
        if is_told(found):
            told += 1
            continue
        taken += 1
        posed, _ = found
        frames = sorted(
            json.loads(path.read_text(encoding="utf-8-sig"))["frames"], key=lambda frame: frame["file_path"]
        )
        assert len(posed.numbers) == len(frames), name
        poses = np.array([frame["transform_matrix"][:3] for frame in frames], float)
        assert np.allclose(posed.camera_to_worlds, poses, rtol=1e-6, atol=2e-3), name
        assert all(camera.params[0] > 0 and camera.width >= 1 for camera in posed.cameras), name
    assert told > 50 and taken > 10


def test_epic_fields(tmp_path):
    path = room.write_epic_fields(tmp_path / "P28_101.json")
    taken = told = 0
    for name, copy in each(path, tmp_path, 14):
        found = outcome(lambda copy=copy: read_epic_fields(copy))
        if is_told(found):
            told += 1
            continue
        taken += 1
        content = json.loads(copy.read_text(encoding="utf-8-sig"))
        posed, names = found
        assert names == list(content["images"]), name
        assert list(posed.cameras[0].params) == content["camera"]["params"], name
        positions = np.array([content["images"][key][4:] for key in sorted(names)], float)
        turned = -np.einsum(
            "nji,nj->ni", posed.camera_to_worlds[:, :, :3] * (1, -1, -1), posed.camera_to_worlds[:, :, 3]
        )
        assert np.allclose(turned, positions, atol=1e-6 * (1 + np.abs(positions).max())), name
    assert told > 50 and taken > 10


def values(model: Model) -> np.ndarray:
    """All numbers of a model, in the order of its files."""
    cameras = [v for camera in model.cameras.values() for v in (camera.width, camera.height, *camera.params)]
    return np.concatenate((cameras, np.ravel(model.images.poses), np.ravel(model.points)))


@pytest.mark.parametrize("kind", ["txt", "bin"])
def test_colmap(tmp_path, kind):
    """Of a damaged byte at most one number comes of another value; what is cut or goes on is refused."""
    folder = room.write_colmap(tmp_path / "model")
    lines = (folder / "points3D.txt").read_text().splitlines()[:40]
    (folder / "points3D.txt").write_text("\n".join(lines) + "\n")
    if kind == "bin":
        import pycolmap

        pycolmap.Reconstruction(str(folder)).write_binary(str(folder))
        for path in folder.glob("*.txt"):
            path.unlink()
    truth = read_model(folder)
    told = 0
    for name in ("cameras", "images", "points3D"):
        path = folder / f"{name}.{kind}"
        content = path.read_bytes()
        damaged = {mutation.name: mutation for mutation in of_bytes(content, seed=7, flips=60)}
        for what, mutation in damaged.items():
            mutation.apply(path)
            found = outcome(lambda: read_model(folder))
            now = path.read_bytes() if path.is_file() else b""
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            if is_told(found):
                told += 1
                continue
            assert kind == "txt" or len(now) == len(content), what
            if len(values(found)) == len(values(truth)):
                assert (values(found) != values(truth)).sum() <= 1 or kind == "txt", what
            else:
                assert kind == "txt", what
        if kind == "bin":
            for cut in random.Random(1).sample(range(len(content)), 40):
                path.write_bytes(content[:cut])
                assert is_told(outcome(lambda: read_model(folder))), (name, cut)
            path.write_bytes(content)
    assert told > 20


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_archives(tmp_path, kind):
    """Every picture comes out as it was, or a sentence does."""
    random_colours = np.random.default_rng(4).integers(0, 256, (5, 6, 8, 3), np.uint8)
    path = tmp_path / f"frames.{kind}"
    contents = {}
    for i, colours in enumerate(random_colours, 1):
        file = io.BytesIO()
        Image.fromarray(colours).save(file, "PNG")
        contents[f"frame_{i:05d}.png"] = file.getvalue()
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            for name, content in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    def read() -> dict[int, np.ndarray]:
        frames = ArchiveFrames(path)
        return dict(frames.read(frames.numbers))

    content, told = path.read_bytes(), 0
    for mutation in of_bytes(content, seed=3, flips=80):
        mutation.apply(path)
        found = outcome(read)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        if is_told(found):
            told += 1
            continue
        known = {colours.tobytes() for colours in random_colours}
        strange = sum(picture.tobytes() not in known for picture in found.values())
        assert not strange, mutation.name
    assert told > 10
