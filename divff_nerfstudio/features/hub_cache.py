"""What a download from the Hugging Face hub that broke off has left on this machine, and what to do about it.

The hub's library goes on with a file that it knows to be unfinished, and never looks again at one that it takes for
finished: where that was cut short, by a full disk or a power failure, the same error comes back for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

_UNFINISHED = ".incomplete"
_PIECE = 2**22
_LATELY = 600.0
"""Seconds: an unfinished file that has not changed for longer is of another download than the one that fails."""
_GO_ON = "the download broke off, start the same line again, which goes on where it was, or "


def how_to_go_on(repository: str | None, error: BaseException) -> str:
    """What to do where a model of the hub cannot be had because its download broke off.

    Args:
        repository: Its name on the hub; None: it is from elsewhere.
        error: Why it cannot be had.

    Returns:
        A clause that goes before another remedy; empty where nothing tells that a download broke off.
    """
    if repository is None:
        return ""
    folder, chain = _folder(repository), list(_chain(error))
    if any(map(_is_of_the_line, itertools.takewhile(lambda each: not _is_of_the_cache(each), chain))):
        return _GO_ON
    with contextlib.suppress(OSError):  # the cache may be another user's, and what is told is only a help
        if any(_changed_lately(file) for file in (folder / "blobs").glob(f"*{_UNFINISHED}")):
            return _GO_ON
    if any(map(_is_of_the_cache, chain)):
        return ""  # a file is not there at all: none was read, and reading gigabytes for their digests finds nothing
    with contextlib.suppress(OSError):
        if damaged := next((file for file in _files(folder) if not _is_what_it_is_called(file)), None):
            return f"{damaged} is cut short or damaged, delete it and start again, which fetches it anew, or "
    return ""


def _folder(repository: str) -> Path:
    """Folder in which the hub's library keeps a model."""
    from huggingface_hub import constants, file_download

    return Path(constants.HF_HUB_CACHE, file_download.repo_folder_name(repo_id=repository, repo_type="model"))


def _files(folder: Path) -> list[Path]:
    """Files of a model, each called by the digest of its content, without those of other versions alone."""
    blobs = folder / "blobs"
    if not blobs.is_dir():
        return []
    main = folder / "refs" / "main"
    commit = main.read_text(encoding="utf-8").strip() if main.is_file() else None
    linked: dict[bool, set[Path]] = {True: set(), False: set()}
    for path in (folder / "snapshots").glob("*/**/*"):
        if path.is_symlink():
            linked[path.relative_to(folder).parts[1] == commit].add(path.resolve())
    others = set() if commit is None else linked[False] - linked[True]
    return sorted(path for path in blobs.iterdir() if path.resolve() not in others)


def _changed_lately(file: Path) -> bool:
    return time.time() - file.stat().st_mtime < _LATELY


def _is_what_it_is_called(file: Path) -> bool:
    """Whether a file's content has the digest that it is called by: SHA-256, or Git's SHA-1 of small files.

    Of one that cannot be read nothing is said.
    """
    if len(file.name) not in (40, 64):
        return True
    with contextlib.suppress(OSError), file.open("rb") as content:
        digest = hashlib.sha256() if len(file.name) == 64 else hashlib.sha1(b"blob %d\0" % file.stat().st_size)
        while piece := content.read(_PIECE):
            digest.update(piece)
        return digest.hexdigest() == file.name
    return True


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it comes of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_the_cache(error: BaseException) -> bool:
    """Whether an error says that a file is not there: on the hub, or in the cache of a machine without a network.

    What it comes of is no download: at most the question whether the hub has the file.
    """
    from huggingface_hub.errors import EntryNotFoundError

    return isinstance(error, EntryNotFoundError)


def _is_of_the_line(error: BaseException) -> bool:
    """Whether an error says that a connection was lost, or brought less than was announced; not that there was none."""
    from requests import exceptions
    from urllib3.exceptions import MaxRetryError

    if isinstance(error, exceptions.ConnectionError):
        none = (exceptions.ConnectTimeout, exceptions.ProxyError, exceptions.SSLError)
        return not isinstance(error, none) and not any(isinstance(each, MaxRetryError) for each in error.args)
    if isinstance(error, exceptions.ChunkedEncodingError):
        return True
    return isinstance(error, OSError) and "Consistency check failed" in str(error)
