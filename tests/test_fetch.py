"""Fetching files from a server on this machine that breaks off, lies and refuses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from file_server import Served, serving
from waiting import until

from divff_nerfstudio.download import fetch as fetching
from divff_nerfstudio.download.fetch import DownloadError, Remote, fetch, part_path, record_path
from divff_nerfstudio.errors import DivffError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
PAGE = "https://somewhere.example/page"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(fetching.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(fetching, "CHUNK", 10_000)


def get(served: Served, path, sha256=None, check=None):
    with serving({"/file": served}) as address:
        return fetch(Remote(f"{address}/file", PAGE, sha256), path, check)


def sentence(error: pytest.ExceptionInfo) -> str:
    """The message, which is one sentence that names what to do."""
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def leftovers(path) -> set[str]:
    return {p.name for p in path.parent.iterdir()} - {path.name, record_path(path).name, f".{path.name}.lock"}


def test_a_file_is_fetched_once_and_recorded(tmp_path):
    path, served = tmp_path / "deep" / "a.bin", Served(CONTENT)
    assert get(served, path) == path and path.read_bytes() == CONTENT
    record = json.loads(record_path(path).read_text())
    assert record["sha256"] == hashlib.sha256(CONTENT).hexdigest() and record["size"] == len(CONTENT)
    get(served, path)
    assert len(served.requests) == 1 and not leftovers(path)


@pytest.mark.parametrize("ranges", [True, False])
def test_what_breaks_off_is_continued(tmp_path, ranges):
    """A server that knows ranges sends each byte once; another starts anew, and the file is right all the same."""
    path, served = tmp_path / "a.bin", Served(CONTENT, break_after=[70_000, 50_000, 20_000], ranges=ranges)
    get(served, path)
    assert path.read_bytes() == CONTENT and not leftovers(path)
    places = [request.get("Range") for request in served.requests]
    assert places[0] is None and len(places) == 4
    if ranges:
        assert places[1:] == ["bytes=70000-", "bytes=120000-", "bytes=140000-"]


def test_a_later_start_continues(tmp_path):
    path, served = tmp_path / "a.bin", Served(CONTENT, break_after=[90_000, *[0] * 10])
    with pytest.raises(DownloadError, match=r"90000 of 300000|ChunkedEncodingError") as error:
        get(served, path)
    assert PAGE in sentence(error) and not path.exists() and part_path(path).stat().st_size == 90_000
    whole = Served(CONTENT)
    with serving({"/file": whole}) as address:
        validator = json.loads((tmp_path / "a.bin.part.json").read_text()) | {"url": f"{address}/file"}
        (tmp_path / "a.bin.part.json").write_text(json.dumps(validator))
        fetch(Remote(f"{address}/file", PAGE), path)
    assert [request.get("Range") for request in whole.requests] == ["bytes=90000-"]
    assert path.read_bytes() == CONTENT


def test_parts_of_two_files_are_not_mixed(tmp_path):
    """The file is another one when the download goes on: by its tag, by its size where it has no tag, by its place."""
    other = CONTENT[::-1]
    for name, changed in (
        ("tag", Served(other, tag='"b"')),
        ("size", Served(other + b"more", tag=None)),
        ("place", Served(other, tag=None, shift=7)),
    ):
        path = tmp_path / name
        with serving({"/file": changed}) as address:
            part_path(path).write_bytes(CONTENT[:50_000])
            known = {"url": f"{address}/file", "tag": '"a"' if name == "tag" else None, "total": len(CONTENT)}
            path.with_name(name + ".part.json").write_text(json.dumps(known))
            fetch(Remote(f"{address}/file", PAGE), path)
        assert path.read_bytes() == changed.content


def test_a_part_that_is_complete_already(tmp_path):
    path, served = tmp_path / "a.bin", Served(CONTENT)
    with serving({"/file": served}) as address:
        part_path(path).write_bytes(CONTENT)
        known = {"url": f"{address}/file", "tag": '"a"', "total": len(CONTENT)}
        path.with_name("a.bin.part.json").write_text(json.dumps(known))
        fetch(Remote(f"{address}/file", PAGE), path)
    assert path.read_bytes() == CONTENT and len(served.requests) == 1


def test_a_declared_length_that_is_too_long(tmp_path):
    path = tmp_path / "a.bin"
    with pytest.raises(DownloadError) as error:
        get(Served(CONTENT, declared=len(CONTENT) + 10, ranges=False), path)
    assert PAGE in sentence(error) and not path.exists()


def test_a_declared_length_that_is_too_short_is_found_by_the_check(tmp_path):
    """HTTP ends where the length says: only the content can tell."""

    def check(path):
        if path.stat().st_size < len(CONTENT):
            raise DivffError(f"{path} is truncated.")

    path = tmp_path / "a.bin"
    with pytest.raises(DownloadError, match="damaged") as error:
        get(Served(CONTENT, declared=1000), path, check=check)
    assert PAGE in str(error.value)
    assert not path.exists() and not record_path(path).exists()
    get(Served(CONTENT), path, check=check)
    assert path.read_bytes() == CONTENT


def test_a_slow_server_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "TIMEOUT", (1.0, 0.1))
    monkeypatch.setattr(fetching, "RETRIES", 2)
    served = Served(CONTENT, break_after=[30_000] * 5, ranges=False, pause=threading.Event())
    with pytest.raises(DownloadError, match="start again later") as error:
        get(served, tmp_path / "a.bin")
    sentence(error)


def test_servers_that_are_busy_are_asked_again(tmp_path):
    path, served = tmp_path / "a.bin", Served(CONTENT, statuses=[503, 429])
    get(served, path)
    assert path.read_bytes() == CONTENT and len(served.requests) == 3


@pytest.mark.parametrize(
    ("served", "said"),
    [
        (Served(b"", status=403), "403"),
        (Served(b"", status=404), "404"),
        (Served(b"<!DOCTYPE html><title>Sign in</title>", kind="text/html; charset=utf-8"), "web page"),
        (Served(b"\n <html><body>Virus scan warning</body></html>"), "web page"),
    ],
)
def test_a_refusal_names_the_way_by_hand(tmp_path, served, said):
    path = tmp_path / "a.bin"
    with pytest.raises(DownloadError, match=said) as error:
        get(served, path)
    assert PAGE in sentence(error) and str(path) in str(error.value)
    assert not path.exists() and not leftovers(path) and len(served.requests) == 1


def test_no_server_at_all(tmp_path):
    with serving({}) as address:
        pass
    with pytest.raises(DownloadError, match="ConnectionError") as error:
        fetch(Remote(f"{address}/file", PAGE), tmp_path / "a.bin")
    sentence(error)


def test_a_known_checksum_is_compared(tmp_path):
    path = tmp_path / "a.bin"
    with pytest.raises(DownloadError, match="another file") as error:
        get(Served(CONTENT), path, sha256="0" * 64)
    sentence(error)
    assert not path.exists() and not leftovers(path)
    get(Served(CONTENT), path, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT


def test_a_recorded_checksum_is_compared(tmp_path):
    path = tmp_path / "a.bin"
    get(Served(CONTENT), path)
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(DownloadError, match="has changed since") as error:
        get(Served(CONTENT), path)
    sentence(error)
    path.unlink()
    for other in (CONTENT[::-1], CONTENT + b"!"):
        with pytest.raises(DownloadError, match=r"another file|bytes where") as error:
            get(Served(other), path)
        sentence(error)
        assert not path.exists() and not leftovers(path)
    get(Served(CONTENT), path)
    assert path.read_bytes() == CONTENT


def test_a_file_that_was_put_there_is_recorded_unless_it_is_a_page(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    served = Served(b"other")
    get(served, path)
    assert not served.requests and record_path(path).exists()
    page = tmp_path / "b.bin"
    page.write_text("<!doctype html><title>Quota exceeded</title>")
    with pytest.raises(DownloadError, match="web page") as error:
        get(served, page)
    assert PAGE in sentence(error) and page.exists() and not record_path(page).exists()


def test_a_damaged_record_is_named(tmp_path):
    path = tmp_path / "a.bin"
    get(Served(CONTENT), path)
    record_path(path).write_text("{")
    with pytest.raises(DownloadError, match=r"a\.bin\.json") as error:
        get(Served(CONTENT), path)
    sentence(error)


def test_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DownloadError, match="make room") as error:
        get(Served(CONTENT), tmp_path / "a.bin")
    sentence(error)


def test_two_at_once(tmp_path):
    import filelock

    with filelock.FileLock(tmp_path / ".a.bin.lock"), pytest.raises(DownloadError, match="another process"):
        get(Served(CONTENT), tmp_path / "a.bin")


def test_a_killed_download_goes_on(tmp_path):
    path = tmp_path / "a.bin"
    served = Served(CONTENT, break_after=[120_000], pause=threading.Event())
    code = (
        "import sys; from pathlib import Path; from divff_nerfstudio.download.fetch import Remote, fetch; "
        "import divff_nerfstudio.download.fetch as f; f.CHUNK = 10_000; "
        "fetch(Remote(sys.argv[1], 'page'), Path(sys.argv[2]))"
    )
    with serving({"/file": served}) as address:
        process = subprocess.Popen([sys.executable, "-c", code, f"{address}/file", str(path)])
        until(lambda: part_path(path).exists() and part_path(path).stat().st_size >= 110_000, "most of the download")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done = part_path(path).stat().st_size
        served.pause = None
        fetch(Remote(f"{address}/file", PAGE), path)
    assert path.read_bytes() == CONTENT and not leftovers(path)
    assert done >= 110_000 and served.requests[-1]["Range"] == f"bytes={done}-"


RECORD = {"url": "x", "size": 3, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "record",
    ["", "[]", '{"url": "x"}']
    + [json.dumps(RECORD | change) for change in ({"size": -1}, {"size": float("nan")}, {"sha256": "abc"})],
)
def test_a_record_that_is_none_is_named(tmp_path, record):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    record_path(path).write_text(record)
    with pytest.raises(DownloadError, match="delete it to record it anew"):
        fetch(Remote("http://127.0.0.1:9/a.bin", "page"), path)
    assert path.read_bytes() == b"abc"
