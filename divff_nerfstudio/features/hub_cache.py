"""What a download from the Hugging Face hub that broke off has left on this machine, and what to do about it.

The hub's library goes on with a file that it knows to be unfinished, and never looks again at one that it takes for
finished: where that was cut short, by a full disk or a power failure, the same error comes back for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

_UNFINISHED = ".incomplete"
_PIECE = 2**22


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
    blobs = _blobs(repository)
    files = sorted(blobs.iterdir()) if blobs.is_dir() else []
    if damaged := next((file for file in files if not _is_what_it_is_called(file)), None):
        return f"{damaged} is cut short or damaged, delete it and start the same line again, which fetches it anew, or "
    if any(file.name.endswith(_UNFINISHED) for file in files) or any(map(_is_of_the_line, _chain(error))):
        return "the download broke off, start the same line again, which goes on where it was, or "
    return ""


def _blobs(repository: str) -> Path:
    """Folder in which the hub's library keeps the files of a model, each called by the digest of its content."""
    from huggingface_hub import constants, file_download

    return Path(constants.HF_HUB_CACHE, file_download.repo_folder_name(repo_id=repository, repo_type="model"), "blobs")


def _is_what_it_is_called(file: Path) -> bool:
    """Whether a file's content has the digest that it is called by: SHA-256, or Git's SHA-1 of small files."""
    if len(file.name) not in (40, 64):
        return True
    digest = hashlib.sha256() if len(file.name) == 64 else hashlib.sha1(b"blob %d\0" % file.stat().st_size)
    with file.open("rb") as content:
        while piece := content.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest() == file.name


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it comes of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_the_line(error: BaseException) -> bool:
    """Whether an error says that a connection was lost, or brought less than was announced."""
    import requests

    if isinstance(error, requests.RequestException):
        return error.response is None
    return isinstance(error, OSError) and "Consistency check failed" in str(error)
