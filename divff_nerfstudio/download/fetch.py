"""Fetching one file: with progress, resumed where it broke off, and checked against what was fetched before."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from divff_nerfstudio.atomic import write_text
from divff_nerfstudio.errors import DISK_FULL, DivffError, stand_in
from divff_nerfstudio.locks import locked
from divff_nerfstudio.schema import Record, read_json

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 16
"""Bytes taken from a connection at a time; where it breaks, fewer than these are lost."""
TIMEOUT = (15.0, 60.0)
"""Seconds to wait for a connection, and for the next bytes."""
RETRIES = 4
"""Failures in a row, none of which brought a byte, after which a download is given up."""
_RETRIED = frozenset((408, 425, 429, 500, 502, 503, 504))
_MAX_WAIT = 30.0


class DownloadError(DivffError):
    """A file cannot be fetched, or is not what was fetched before; the message says what to do by hand."""


class Recorded(Record):
    """What is kept beside a file, as ``FILE.json``, since its first download."""

    url: str
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Remote:
    """A file to be fetched."""

    url: str
    """Address that is fetched."""
    page: str
    """Address that a person opens when the program is refused."""
    sha256: str | None = None
    """Its checksum, where it is known."""


class _BrokenOffError(Exception):
    """A transfer ended early, for a reason that may pass; `wait` are the seconds that the server asks for."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


def record_path(path: Path) -> Path:
    """Where a file's checksum is recorded."""
    return path.with_name(path.name + ".json")


def part_path(path: Path) -> Path:
    """Where a file lies while it is being fetched."""
    return path.with_name(path.name + ".part")


def fetch(remote: Remote, path: Path, check: Callable[[Path], object] | None = None) -> Path:
    """Fetches a file, unless it is there.

    A file that is there is compared with its known or recorded checksum; one that was put there by hand is recorded.
    What an interrupted download has left is continued where the server allows that and still has the same file.

    Args:
        remote: What to fetch.
        path: Where to put it; its folder is made if necessary.
        check: Raises a DivffError where a file is damaged; it is asked before a checksum is recorded, since what is
            recorded must be right.

    Returns:
        `path`.

    Raises:
        DownloadError: If it cannot be fetched, or differs from its known or recorded checksum.
    """
    try:
        with locked(path, DownloadError(f"{path} is being fetched by another process: wait for it, or end it.")):
            return _fetch(remote, path, check)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise DownloadError(
            f"{path.parent} is full: make room there and start again; what has been fetched of {path.name} is kept."
        ) from None


def _fetch(remote: Remote, path: Path, check: Callable[[Path], object] | None) -> Path:
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    record = _read_record(path)
    known = remote.sha256 or (record.sha256 if record else None)
    fresh = not path.exists()
    # pooch fetches anew, without a word, what does not match: a file that is there is compared here.
    if fresh:
        transfer = _Transfer(remote, path, expected=record)
        transfer.run()
        try:
            pooch.retrieve(remote.url, known, path.name, path.parent, downloader=transfer.hand_over)
        except ValueError:
            raise DownloadError(
                f"{remote.url} gives another file than the one known as {path.name} (SHA-256 {known}): if its "
                f"publisher has replaced it, delete {record_path(path)} and start again."
            ) from None
    else:
        _refuse_page(path, remote)
        digest = pooch.file_hash(str(path))
        if known is not None and digest != known:
            raise DownloadError(
                f"{path} has changed since it was fetched (SHA-256 {digest}, not {known}): delete it to fetch it "
                f"anew, or delete {record_path(path)} if the change is meant."
            )
    if record is None:
        try:
            if check is not None:
                check(path)
        except DivffError as error:
            if fresh:
                path.unlink()
            raise DownloadError(
                f"{remote.url} gave a damaged file: start again, or {by_hand(remote, path)} ({error})"
            ) from None
        _write_record(path, Recorded(url=remote.url, size=path.stat().st_size, sha256=pooch.file_hash(str(path))))
    return path


def _read_record(path: Path) -> Recorded | None:
    if not record_path(path).exists():
        return None
    return read_json(
        record_path(path),
        Recorded,
        f"the record of {path.name}, which cannot be compared without it",
        "delete it to record it anew",
        DownloadError,
    )


def _write_record(path: Path, record: Recorded) -> None:
    write_text(record_path(path), json.dumps(record.model_dump(), indent=1) + "\n")


def by_hand(remote: Remote, path: Path) -> str:
    """The way without this program."""
    return f"fetch it by hand from {remote.page} and put it at {path}"


def _refuse_page(path: Path, remote: Remote) -> None:
    """Refuses a web page where a file was asked for, as clouds send it to programs."""
    if stand_in(path) is not None:
        raise DownloadError(f"{path} is a web page, not the file: delete it, {by_hand(remote, path)}.")


class _Validator(Record):
    """By which a server tells whether a partial file is still a part of what it has."""

    url: str
    tag: str | None
    total: int | None

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(self.model_dump()))

    @staticmethod
    def read(path: Path) -> _Validator | None:
        try:
            return read_json(path, _Validator, "what is known of a partial download", "delete it")
        except DivffError:
            return None


class _Transfer:
    """A download that continues what was interrupted, and tries again what broke off."""

    def __init__(self, remote: Remote, path: Path, expected: Recorded | None):
        self.remote = remote
        self.path = path
        self.part = part_path(path)
        self.expected = expected
        self.validator_path = self.part.with_name(self.part.name + ".json")
        self.total: int | None = None

    def run(self) -> None:
        """Fetches everything into the partial file, which `hand_over` then gives to pooch.

        Raises:
            DownloadError: If it cannot be had.
        """
        self._fetch_all()
        try:
            _refuse_page(self.part, self.remote)
        except DownloadError:
            self._discard()
            raise DownloadError(
                f"{self.remote.url} gives a web page, not the file: {by_hand(self.remote, self.path)}."
            ) from None

    def hand_over(self, fname: Any, action: Any, pooch: Any, *, check_only: bool | None = None) -> None:
        """As a pooch downloader (address, temporary file): gives what was fetched, to be compared and moved."""
        del fname, pooch, check_only
        self.part.replace(action)
        self.validator_path.unlink(missing_ok=True)

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.validator_path.unlink(missing_ok=True)

    def _done(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _fetch_all(self) -> None:
        """Fetches until everything is there.

        Raises:
            DownloadError: After several failures in a row that brought nothing.
        """
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        failures = 0
        with Progress(*columns, TimeRemainingColumn()) as progress:
            task = progress.add_task(self.path.name, total=None)
            while True:
                before = self._done()
                try:
                    self._fetch_once(lambda: progress.update(task, completed=self._done(), total=self.total))
                    return
                except _BrokenOffError as error:
                    failures = failures + 1 if self._done() <= before else 1
                    if failures >= RETRIES:
                        raise DownloadError(
                            f"{self.remote.url} cannot be fetched ({error}): start again later to continue, or "
                            f"{by_hand(self.remote, self.path)}."
                        ) from None
                    wait = 0.5 * 2**failures if error.wait is None else error.wait
                    time.sleep(min(wait, _MAX_WAIT))

    def _fetch_once(self, report: Callable[[], None]) -> None:
        """One request; raises _BrokenOffError for what may pass."""
        import requests
        import urllib3.exceptions

        start = self._done()
        validator = _Validator.read(self.validator_path)
        if start and (validator is None or validator.url != self.remote.url):
            self._discard()
            start, validator = 0, None
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if validator and validator.tag:
                headers["If-Range"] = validator.tag
        try:
            with requests.get(self.remote.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                if self._accept(response, start, validator):
                    self._receive(response, report)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
            raise _BrokenOffError(type(error).__name__) from error
        if self.total is not None and self._done() < self.total:
            raise _BrokenOffError(f"{self._done()} of {self.total} bytes came")

    def _accept(self, response: requests.Response, start: int, validator: _Validator | None) -> bool:
        """Looks at the head of an answer and prepares the partial file; False if that is complete already."""
        status = response.status_code
        if status == 416 and start:
            size = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
            if size and int(size[1]) == start:
                self.total = start
                return False
            self._discard()
            raise _BrokenOffError("the file changed on the server")
        if status in _RETRIED:
            asked = response.headers.get("Retry-After", "")
            raise _BrokenOffError(f"the server answers {status}", float(asked) if asked.isdigit() else None)
        if status not in (200, 206):
            raise DownloadError(
                f"{self.remote.url} is refused ({status} {response.reason}): {by_hand(self.remote, self.path)}."
            )
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "text/html":
            raise DownloadError(f"{self.remote.url} gives a web page, not the file: {by_hand(self.remote, self.path)}.")
        length = response.headers.get("Content-Length", "")
        if status == 206:
            place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if place is None or int(place[1]) != start:
                self._discard()
                raise _BrokenOffError("the server continues at another place than asked")
            self.total = int(place[2]) if place[2] != "*" else start + int(length) if length.isdigit() else None
            if validator and validator.total not in (None, self.total):
                self._discard()
                raise _BrokenOffError("the file changed on the server")
        else:
            if start:
                self._discard()
            start = 0
            self.total = int(length) if length.isdigit() else None
        tag = response.headers.get("ETag", "")
        if not tag or tag.startswith("W/"):
            tag = response.headers.get("Last-Modified")
        if start == 0:
            _Validator(url=self.remote.url, tag=tag, total=self.total).write(self.validator_path)
        if self.total is not None:
            self._ensure_room(self.total - start)
            if self.expected is not None and self.total != self.expected.size:
                self._discard()
                raise DownloadError(
                    f"{self.remote.url} has {self.total} bytes where {self.path.name} had {self.expected.size}: if its "
                    f"publisher has replaced it, delete {record_path(self.path)} and start again."
                )
        return True

    def _ensure_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise DownloadError(
                f"{self.path.parent} has {free / 1e9:.1f} GB free where {self.path.name} needs {needed / 1e9:.1f} GB "
                "more: make room there, or give another folder."
            )

    def _receive(self, response: requests.Response, report: Callable[[], None]) -> None:
        with self.part.open("ab") as file:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                file.flush()
                report()
