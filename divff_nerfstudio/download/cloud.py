"""Folders in a cloud, which have no address for programs."""

from __future__ import annotations

import shutil
from pathlib import Path

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.download.fetch import DownloadError


def fetch_folder(url: str, page: str, folder: Path) -> Path:
    """Fetches a folder on Google Drive with the package gdown, which nerfstudio brings, unless it is there.

    Args:
        url: Its address.
        page: Address that a person opens.
        folder: Where to put it.

    Returns:
        `folder`.

    Raises:
        DownloadError: If the package is missing or the cloud refuses, with the way by hand.
    """
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    by_hand = f"open {page} in a browser, download the folder and unpack it into {folder}"
    try:
        import gdown  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DownloadError(f"The package gdown is not installed: pip install gdown, or {by_hand}.") from None
    if folder.is_dir():
        folder.rmdir()
    with atomic_path(folder) as temporary:
        try:
            files = gdown.download_folder(url, output=str(temporary), quiet=False)
            if not files:
                raise RuntimeError("nothing came")
        except Exception as error:  # gdown's errors differ from version to version, and all mean the same here
            shutil.rmtree(temporary, ignore_errors=True)
            raise DownloadError(f"{url} is refused ({error}): {by_hand}.") from None
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return folder
