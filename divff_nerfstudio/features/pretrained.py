"""Models of transformers by their name on the Hugging Face hub or from a folder, and what identifies weights."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from divff_nerfstudio.errors import DivffError, install_extra
from divff_nerfstudio.features.hub_cache import how_to_go_on

_PATIENCE = 10.0
"""Seconds to wait for the hub's first answer."""


class EncoderError(DivffError):
    """A model or its weights are not to be had; the message says what to fetch and where to put it."""


def weights_fingerprint(*parts: nn.Module | Mapping[str, Tensor] | None) -> str:
    """SHA-256 over the names and values of all weights, in single precision.

    Args:
        parts: Modules or their state; None is left out.
    """
    digest = hashlib.sha256()
    for part in parts:
        if part is not None:
            state = part.state_dict() if isinstance(part, nn.Module) else part
            for name, weight in sorted(state.items()):
                digest.update(name.encode())
                digest.update(weight.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()


def unreachable_hub() -> str | None:
    """Looks whether the Hugging Face hub answers; where not, callers ask its cache alone.

    By itself the hub's library tries for a minute, and tells each attempt.

    Returns:
        What is wrong, in a few words; None where the hub answers.
    """
    import requests
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        with contextlib.suppress(requests.RequestException):
            requests.head(constants.ENDPOINT, timeout=_PATIENCE)
            return None
    return f"{constants.ENDPOINT} cannot be reached or HF_HUB_OFFLINE is set, and the cache has no sound copy"


def cached_file(repository: str, *names: str) -> Path | None:
    """The first of several files of a repository of the hub that its cache on this machine holds; None: it has none."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def load_pretrained(model_class: str, name: str, option: str) -> Any:
    """Loads a model of transformers, whole.

    Args:
        model_class: Its class in transformers, such as "Sam2Model".
        name: Its name on the hub, such as "facebook/sam2.1-hiera-large", or a folder with ``config.json`` and
            ``model.safetensors``.
        option: What a user types to name a folder, such as "--segments.sam.weights".

    Returns:
        The model, for inference, in single precision, on the CPU.

    Raises:
        EncoderError: If transformers or the weights are not to be had, or the weights lack a part of the model (which
            transformers would fill with random numbers).
    """
    try:
        import transformers
    except ImportError as error:
        raise EncoderError(f"{name} needs the package transformers ({error}): {install_extra('features')}.") from None
    place = _folder(name)
    absent = unreachable_hub() if place is None else None
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model, info = getattr(transformers, model_class).from_pretrained(
            str(place or name),
            output_loading_info=True,
            dtype="float32",
            local_files_only=absent is not None,
            trust_remote_code=False,
        )
    except Exception as error:  # whatever a download, a hub or a reader of weights may raise
        reason = absent or " ".join(str(error).split())[:200] or type(error).__name__
        raise EncoderError(_remedy(place, name, reason, option, error)) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    lacking = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if lacking:
        raise EncoderError(_remedy(place, name, f"they lack {lacking[0]} and {len(lacking) - 1} more", option))
    return model.eval().requires_grad_(False)


def load_companions(classes: Sequence[str], name: str, option: str) -> list[Any]:
    """Loads what belongs to a model of transformers: what prepares its pictures and its texts.

    Args:
        classes: Their classes in transformers, such as "CLIPTokenizer".
        name: See `load_pretrained`.
        option: See `load_pretrained`.

    Raises:
        EncoderError: If one of them is not to be had.
    """
    place = _folder(name)
    cache_only = place is None and unreachable_hub() is not None
    try:
        import transformers

        options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": cache_only}
        return [getattr(transformers, each).from_pretrained(str(place or name), **options) for each in classes]
    except Exception as error:  # whatever a download or a hub may raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        first = how_to_go_on(name if place is None else None, error)
        raise EncoderError(
            f"What belongs to {name} cannot be had ({reason}): {first}fetch preprocessor_config.json, vocab.json, "
            f"merges.txt and tokenizer_config.json from https://huggingface.co/{name}, put them beside its weights, "
            f"and give {option} FOLDER."
        ) from error


def _folder(name: str) -> Path | None:
    """The folder that a model is read from; None: `name` is its name on the hub."""
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else None


def _remedy(place: Path | None, name: str, reason: str, option: str, error: Exception | None = None) -> str:
    files = "config.json and model.safetensors"
    if place is None and name.startswith(("/", ".", "~")):
        return f"{name} is no folder: give {option} the folder with the model's {files}, or its name on the hub."
    if place is not None:
        return f"The weights in {place} cannot be used ({reason}): put the model's own {files} there."
    first = "" if error is None else how_to_go_on(name, error)
    return (
        f"The weights {name} cannot be had ({reason}): {first}fetch {files} from https://huggingface.co/{name} where "
        f"there is a network, put both in one folder on this machine, and give {option} FOLDER."
    )
