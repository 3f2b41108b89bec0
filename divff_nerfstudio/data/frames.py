"""The frames of a scene as one memory-mapped array, decoded and verified once."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from divff_nerfstudio.arrays import ArrayFaultError, create_array, open_array
from divff_nerfstudio.atomic import atomic_path, remove_unfinished
from divff_nerfstudio.cache_dirs import is_writable, user_cache_dir
from divff_nerfstudio.data import png_chunks
from divff_nerfstudio.data.picture_names import alike
from divff_nerfstudio.errors import DivffError, stand_in
from divff_nerfstudio.locks import locked

PICTURE_FORMATS = ("BMP", "JPEG", "PNG", "TIFF")
"""What scenes are made of. Pillow knows more, among them EPS, for which it starts a program."""
MAX_PIXELS = 2**27
"""Larger pictures are taken for something else."""
_ORIENTATION = 0x0112
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, OverflowError, struct.error)
"""How Pillow's readers of formats fail where a file is damaged."""
_FOLDER = ".divff_cache"
_DIGEST_BYTES = 16


class SceneError(DivffError):
    """Something is wrong with a scene folder; the message names the file and the remedy in one sentence."""


@contextlib.contextmanager
def open_picture(
    path: Path, content: IO[bytes] | None = None, formats: tuple[str, ...] = PICTURE_FORMATS
) -> Iterator[Image.Image]:
    """Opens a picture that may come from a stranger; all of this package's are opened here.

    Args:
        path: The file, or what a picture elsewhere is called.
        content: What to read where `path` is only a name.
        formats: Formats that are read, as Pillow names them.

    Yields:
        The picture; what fails while the block reads it is told as a fault of the file.

    Raises:
        SceneError: If the file is missing, no ordinary file, truncated, larger than `MAX_PIXELS`, or no picture in one
            of `formats`, whatever it is called.
    """
    try:
        if content is None and not stat.S_ISREG(path.stat().st_mode):
            raise SceneError(f"{path} is no ordinary file: put the picture itself there.")
        with _opened(path if content is None else content, formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise SceneError(
                    f"{path} has {image.width}x{image.height} pixels, more than is read: make the picture smaller."
                )
            yield image
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    except UnidentifiedImageError:
        raise SceneError(
            (None if content else stand_in(path))
            or f"{path} is truncated or no picture in {', '.join(formats[:-1])} or {formats[-1]}: copy it anew from "
            "its source, or save it in one of these."
        ) from None
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SceneError(f"{path} is truncated or no picture ({reason}): copy it anew from its source.") from None


def _opened(source: Path | IO[bytes], formats: tuple[str, ...]) -> Image.Image:
    """As Pillow opens it, but a damaged note in a PNG file does not keep it from being a picture."""
    try:
        return Image.open(source, formats=formats)
    except UnidentifiedImageError:
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(source.open("rb")) if isinstance(source, Path) else source
            try:
                sound = png_chunks.without_damage(file)
            except ValueError:
                sound = None
        if sound is None:
            raise
        return Image.open(io.BytesIO(sound), formats=formats)


def _missing(path: Path, more: str = "") -> SceneError:
    """What to say of a picture that is not there; with the one that is called alike, if there is one."""
    with contextlib.suppress(OSError):
        for other in path.parent.iterdir():
            if alike(other.name) == alike(path.name) and other.name != path.name:
                return SceneError(f"{path} is missing{more}, but there is {other.name}: give both the same name.")
    return SceneError(f"{path} is missing{more}: put it there, or take its id out of meta.json.")


def require_upright(path: Path, image: Image.Image) -> None:
    """Refuses a picture that says it is to be turned: poses and masks refer to its rows as they are stored."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # what a camera notes beside a picture is often damaged, which does not concern the picture
        orientation = 1
    if orientation in range(2, 9):
        raise SceneError(
            f"{path} is stored turned or mirrored (EXIF orientation {orientation}): take the entry away where the pose "
            "is of the picture as it is stored, as COLMAP reads it; otherwise turn the picture itself, too."
        )


def decode_frame(
    path: Path, content: IO[bytes] | None = None, formats: tuple[str, ...] = PICTURE_FORMATS
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes a picture into RGB.

    Grey and palette pictures are converted, an opaque alpha channel is dropped, of 16 bits a colour the upper 8 are
    kept. Check sums are looked at where a format has them, but for those of notes beside the picture. Transparent
    pictures, CMYK, single channels of 16 bits or floats, and pictures whose EXIF entry says that they are to be turned
    are refused: what they show would be a guess.

    Args:
        path: The file, or what a picture elsewhere is called.
        content: What to read where `path` is only a name.
        formats: As for `open_picture`.

    Raises:
        SceneError: As `open_picture`, or if it does not have red, green and blue in 8 bits.
    """
    with open_picture(path, content, formats) as image:
        if image.format == "PNG":  # its check sums, which decoding leaves out
            sound = png_chunks.without_damage(cast(IO[bytes], cast(ImageFile, image).fp))
            content = content if sound is None else io.BytesIO(sound)
    with open_picture(path, content, formats) as image:
        require_upright(path, image)
        image.load()
        if image.mode not in ("RGB", "L", "P", "RGBA", "LA"):
            raise SceneError(f"{path} has image mode {image.mode}, which is not read: save it as 8-bit RGB.")
        if not _is_opaque(image):
            raise SceneError(f"{path} has image mode {image.mode} with transparent places: save it as 8-bit RGB.")
        return np.asarray(image.convert("RGB"))


def _is_opaque(image: Image.Image) -> bool:
    if image.mode not in ("RGBA", "LA") and "transparency" not in image.info:
        return True
    return image.convert("RGBA").getchannel("A").getextrema() == (255, 255)


def frame_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture, from its header.

    Raises:
        SceneError: As `open_picture`.
    """
    with open_picture(path) as image:
        require_upright(path, image)
        return image.size


def cache_folder(root: Path) -> Path:
    """Folder for what is derived from the scene `root`: inside it, where it may be written to, else the user's."""
    return root / _FOLDER if is_writable(root) else user_cache_dir(root)


def _fingerprint(paths: Sequence[Path], width: int, height: int) -> str:
    """Changes when a frame is added, removed, renamed, resized, written to, or exchanged with another one."""
    digest = hashlib.sha256(f"frames 2 {width}x{height}".encode())
    missing = []
    for path in paths:
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            missing.append(path)
            continue
        except OSError as error:
            raise SceneError(
                f"{path} cannot be read ({error.strerror or error}): put the picture itself there."
            ) from None
        # The time of change is also that of a renaming, which neither size nor time of writing tell.
        known = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        digest.update(f"\n{path.name} {' '.join(map(str, known))}".encode())
    if missing:
        raise _missing(missing[0], f", as are {len(missing) - 1} more" if len(missing) > 1 else "")
    return digest.hexdigest()[:20]


def _remove_old(folder: Path, keep: Path) -> None:
    """Removes caches of frames that are no more."""
    kept = keep, _digests_beside(keep)
    for path in (*folder.glob("frames-*.npy"), *folder.glob("digests-*.npy")):
        with contextlib.suppress(OSError):
            if path not in kept:
                path.unlink()


def _digests_beside(cache: Path) -> Path:
    """Where the digests of decoded frames are kept."""
    return cache.with_name(cache.name.replace("frames-", "digests-", 1))


def _digest(frame: UInt8[np.ndarray, "height width 3"]) -> bytes:
    return hashlib.blake2b(frame.tobytes(), digest_size=_DIGEST_BYTES).digest()


def frame_digests(frames: UInt8[np.ndarray, "frames height width 3"]) -> UInt8[np.ndarray, "frames bytes"]:
    """Digests of the pixels of each of the frames that `open_frames` gave.

    They were taken when the frames were decoded: a start reads none of the video's pixels for them. Where they are
    missing, all frames are read once.
    """
    kept = _digests_beside(Path(cast(np.memmap, frames).filename or ""))
    if (found := open_cache(kept, (len(frames), _DIGEST_BYTES))) is not None:
        return found
    digests = np.stack([np.frombuffer(_digest(frame), np.uint8) for frame in frames])
    with contextlib.suppress(OSError):
        _keep_digests(kept, digests)
    return digests


def _keep_digests(target: Path, digests: UInt8[np.ndarray, "frames bytes"]) -> None:
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        np.save(file, digests)


def open_frames(
    root: Path, paths: Sequence[Path], width: int, height: int
) -> UInt8[np.ndarray, "frames {height} {width} 3"]:
    """Opens the decoded frames of a scene, decoding them first where that has not been done.

    The array is memory-mapped and read-only, so that a long video costs no memory and processes share it. That it
    exists under the frames' fingerprint (names, sizes, times, places on the disk) means that all of them were verified.

    Args:
        root: Folder of the scene.
        paths: The frames in the order of the result.
        width: Width in pixels that all frames must have.
        height: Height in pixels that all frames must have.

    Raises:
        SceneError: If a frame is missing, damaged or of another size, or the cache cannot be written.
    """
    shape = (len(paths), height, width, 3)
    cache = cache_folder(root) / f"frames-{_fingerprint(paths, width, height)}.npy"
    if (frames := open_cache(cache, shape)) is not None:
        return frames
    try:
        with _alone_with(cache):
            if (frames := open_cache(cache, shape)) is not None:
                return frames
            remove_unfinished(cache.parent, "frames-*")
            remove_unfinished(cache.parent, "digests-*")
            with atomic_path(cache) as temporary:
                _keep_digests(_digests_beside(cache), _decode_all(temporary, paths, shape))
    except OSError as error:
        raise SceneError(
            f"The decoded frames cannot be kept in {cache.parent} ({error.strerror or error}): make room there, or "
            "name another folder in the environment variable DIVFF_CACHE_DIR."
        ) from error
    _remove_old(cache.parent, cache)
    frames = open_cache(cache, shape)
    if frames is None:
        raise SceneError(f"{cache} changed while it was written: start again when no other process edits the scene.")
    return frames


def _alone_with(cache: Path) -> AbstractContextManager[None]:
    """Has other processes wait that would decode the frames of the same scene, too."""
    busy = SceneError(f"{cache} is being written by another process: wait for it, or end it.")
    return locked(cache.with_name("frames"), busy, waiting=lambda: None, keep=False)


def open_cache(cache: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Maps bytes that were derived from a scene; None where there is no whole file of that shape."""
    try:
        frames = open_array(cache, np.uint8, len(shape))
    except (OSError, ArrayFaultError):
        return None
    return frames if frames.shape == shape else None


def _decode_all(target: Path, paths: Sequence[Path], shape: tuple[int, ...]) -> UInt8[np.ndarray, "frames bytes"]:
    """Decodes frames into a file, and tells their digests."""
    frames = create_array(target, np.uint8, shape)
    digests = np.empty((len(paths), _DIGEST_BYTES), np.uint8)

    def decode(index: int) -> None:
        frame = decode_frame(paths[index])
        if frame.shape != shape[1:]:
            raise SceneError(
                f"{paths[index]} is {frame.shape[1]}x{frame.shape[0]} where the scene's first frame is "
                f"{shape[2]}x{shape[1]}: bring all frames to one size."
            )
        frames[index] = frame
        digests[index] = np.frombuffer(_digest(frame), np.uint8)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(decode, range(len(paths))))
    frames.flush()
    return digests
