"""Archives from strangers."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divff_nerfstudio import archives
from divff_nerfstudio.archives import ArchiveError, check_archive, open_archive
from divff_nerfstudio.download import unpack as unpacking
from divff_nerfstudio.download.unpack import unpack

LIMIT = 10_000_000


def write_zip(path: Path, files: dict[str, bytes], link: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
    return path


def write_tar(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def everything(path: PurePosixPath) -> PurePosixPath:
    return path


def files_below(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


WRITERS = {"a.zip": write_zip, "a.tar": write_tar, "a.tar.gz": write_tar}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_asked_for_is_written_and_nothing_else(tmp_path, name):
    content = {"top/one/a.txt": b"first", "top/one/b.bin": bytes(1000), "top/two/c.txt": b"other"}
    archive = WRITERS[name](tmp_path / name, content)

    def place(path: PurePosixPath) -> PurePosixPath | None:
        return path.relative_to("top") if "one" in path.parts else None

    done = unpack(archive, tmp_path / "out", place, LIMIT)
    assert files_below(tmp_path / "out") == {"one/a.txt": b"first", "one/b.bin": bytes(1000)}
    assert (done.written, done.present, done.kept) == (2, 0, ())
    (tmp_path / "out/one/a.txt").write_bytes(b"my own text")
    done = unpack(archive, tmp_path / "out", place, LIMIT)
    assert (done.written, done.present, done.kept) == (0, 1, (tmp_path / "out/one/a.txt",))
    assert (tmp_path / "out/one/a.txt").read_bytes() == b"my own text"
    unpack(archive, tmp_path / "out", place, LIMIT, overwrite=True)
    assert (tmp_path / "out/one/a.txt").read_bytes() == b"first"


BAD_PATHS = ["/etc/cron.d/x", "../x", "a/../../x", "a\\..\\x", "C:/x", "..", "//x"]


@pytest.mark.parametrize("bad", BAD_PATHS)
@pytest.mark.parametrize("name", WRITERS)
def test_a_path_that_leads_out_is_refused_before_anything_is_written(tmp_path, name, bad):
    archive = WRITERS[name](tmp_path / name, {"good.txt": b"good", bad: b"bad"})
    with pytest.raises(ArchiveError, match="leads out") as error:
        unpack(archive, tmp_path / "out", everything, LIMIT)
    assert str(archive) in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [name]


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b", "/", "\\", "C:", "\0"]), min_size=1, max_size=5))
@settings(max_examples=100)
def test_a_checked_path_stays_below_its_folder(parts):
    try:
        checked = archives.checked_name(Path("a.zip"), "/".join(parts))
    except ArchiveError:
        return
    folder = Path("/nowhere/folder")
    assert (folder / checked).resolve().is_relative_to(folder.resolve())


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (special("x", tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (special("x", tarfile.LNKTYPE, "good.txt"), "link"),
        (special("x", tarfile.FIFOTYPE), "device"),
        (special("x", tarfile.CHRTYPE), "device"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, info, said):
    archive = write_tar(tmp_path / "a.tar", {"good.txt": b"good"}, info)
    with pytest.raises(ArchiveError, match=said):
        unpack(archive, tmp_path / "out", everything, LIMIT)
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_zip_is_refused(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"good.txt": b"good"}, link="x")
    with pytest.raises(ArchiveError, match="link"):
        unpack(archive, tmp_path / "out", everything, LIMIT)


def test_a_link_on_the_disk_is_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "P01_01").symlink_to(tmp_path / "elsewhere")
    archive = write_zip(tmp_path / "a.zip", {"P01_01/x": b"x"})
    with pytest.raises(ArchiveError, match="link"):
        unpack(archive, tmp_path / "out", everything, LIMIT)
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", WRITERS)
def test_a_bomb_is_refused(tmp_path, name):
    archive = WRITERS[name](tmp_path / name, {f"{i}.bin": bytes(400_000) for i in range(30)})
    with pytest.raises(ArchiveError, match="unpacks to more"):
        unpack(archive, tmp_path / "out", everything, LIMIT)
    assert not (tmp_path / "out").exists()


def test_too_many_files_and_files_twice(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="Duplicate"):
        archive = write_zip(tmp_path / "a.zip", {"a": b"1", "./a": b"2"})
        with zipfile.ZipFile(archive, "a") as opened:
            opened.writestr("a", b"3")
    with pytest.raises(ArchiveError, match="twice"):
        check_archive(archive, LIMIT)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with pytest.raises(ArchiveError, match="more than"):
        check_archive(write_tar(tmp_path / "b.tar", {str(i): b"" for i in range(4)}), LIMIT)


@pytest.mark.parametrize("name", WRITERS)
def test_a_truncated_archive_is_named(tmp_path, name):
    archive = WRITERS[name](tmp_path / name, {f"{i}.bin": bytes(range(256)) * 100 for i in range(5)})
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(ArchiveError, match="truncated or no archive"):
        unpack(archive, tmp_path / "out", everything, LIMIT)
    archive.write_bytes(b"not an archive at all" * 100)
    with pytest.raises(ArchiveError, match="truncated or no archive"):
        check_archive(archive, LIMIT)


def test_a_damaged_file_in_a_zip_is_not_written(tmp_path):
    """What was unpacked before it stays; the damaged file does not appear, not even in part."""
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as opened:
        opened.writestr("good.txt", b"good")
        opened.writestr("bad.txt", b"unmistakable content")
    archive.write_bytes(archive.read_bytes().replace(b"unmistakable", b"unmistakeble"))
    with pytest.raises(ArchiveError, match="CRC"):
        unpack(archive, tmp_path / "out", everything, LIMIT)
    assert files_below(tmp_path / "out") == {"good.txt": b"good"}


def test_no_room(tmp_path, monkeypatch):
    archive = write_zip(tmp_path / "a.zip", {"a": bytes(5000)})
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ArchiveError, match="make room"):
        unpack(archive, tmp_path / "out", everything, LIMIT)


def test_members_are_read_where_they_lie(tmp_path):
    archive = write_tar(tmp_path / "a.tar.gz", {"a": b"1", "b": b"22"})
    with open_archive(archive, LIMIT) as members:
        assert [(str(member.name), member.size) for member in members] == [("a", 1), ("b", 2)]
        assert members[0].open().read() == b"1"


def test_separators_of_windows_in_a_zip_are_separators(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"x\\": b"", "x\\a.txt": b"1", "x\\y\\._b": b"2", "__MACOSX\\c": b"3"})
    unpack(archive, tmp_path / "out", everything, LIMIT)
    assert files_below(tmp_path / "out") == {"x/a.txt": b"1"}


@pytest.mark.parametrize("name", WRITERS)
def test_what_file_managers_leave_is_left_out(tmp_path, name):
    """Hidden files, those of a Mac and of Windows; also where one of them is twice."""
    litter = ("._a.txt", "x/._a.txt", "__MACOSX/x/a.txt", "x/Thumbs.db", ".hidden/a.txt", "desktop.ini", ".DS_Store")
    archive = WRITERS[name](tmp_path / name, {"x/a.txt": b"1", **dict.fromkeys(litter, b"junk")})
    unpack(archive, tmp_path / "out", everything, LIMIT)
    assert files_below(tmp_path / "out") == {"x/a.txt": b"1"}


@pytest.mark.parametrize("name", WRITERS)
def test_names_that_differ_by_capitals_alone_are_refused(tmp_path, name):
    archive = WRITERS[name](tmp_path / name, {"P01/a.txt": b"1", "p01/A.TXT": b"2"})
    with pytest.raises(ArchiveError, match="capitals"):
        unpack(archive, tmp_path / "out", everything, LIMIT)
    assert not (tmp_path / "out").exists()


def test_an_encrypted_zip_and_a_name_that_is_no_text(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"a.txt": b"1"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(ArchiveError, match="encrypted"):
        check_archive(tmp_path / "b.zip", LIMIT)
    with pytest.raises(ArchiveError, match="UTF-8"):
        check_archive(write_tar(tmp_path / "a.tar", {"k\udcfcche.txt": b"1"}), LIMIT)
