"""Text towers and tokenizers of transformers in models of open_clip, read from this machine.

By itself open_clip asks the Hugging Face hub for both, even where the weights of all are in a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from divff_nerfstudio.features.pretrained import EncoderError, cached_file
from divff_nerfstudio.schema import read_json

DESCRIPTION = "config.json"
TOKENIZER = "tokenizer_config.json"
_TOKENIZER_FILES = (
    "tokenizer.json", TOKENIZER, "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model",
)  # fmt: skip
_CODE = frozenset(("trust_remote_code", "auto_map", "code_revision", "custom_pipelines"))
_TOKENIZER_OPTIONS = frozenset(("clean", "strip_sep_token", "language", "tokenizer_mode", "context_length"))
"""Options of open_clip's tokenizers that are text and numbers."""


def require_plain(config: Any, place: Path) -> None:
    """Refuses a description of a model that asks for code, or leads elsewhere than to the model itself.

    Raises:
        EncoderError: With the key that asks for it.
    """
    if isinstance(config, list):
        for each in config:
            require_plain(each, place)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        elsewhere = key in ("hf_tokenizer_name", "hf_model_name") and Path(str(value)).exists()
        elsewhere = elsewhere or (key == "timm_model_name" and ":" in str(value))
        if key in _CODE or elsewhere or (key == "tokenizer_kwargs" and set(value or ()) - _TOKENIZER_OPTIONS):
            raise EncoderError(
                f"The encoder in {place} is refused because its {key} may bring code with it: use one without."
            )
        require_plain(value, place)


def text_of(architecture: str) -> dict[str, Any]:
    """How a model that open_clip knows reads texts ("text_cfg"); nothing of others."""
    import open_clip

    if architecture not in open_clip.list_models():
        return {}
    return (open_clip.get_model_config(architecture) or {}).get("text_cfg", {})


def is_here(text: Mapping[str, Any]) -> bool:
    """Whether the cache of the hub on this machine holds all that a "text_cfg" names on the hub, if it names any."""
    tower, tokenizer = text.get("hf_model_name"), text.get("hf_tokenizer_name")
    return (not tower or cached_file(tower, DESCRIPTION) is not None) and (
        not tokenizer or cached_file(tokenizer, *_TOKENIZER_FILES) is not None
    )


def built_here(text: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """A "text_cfg" whose tower is built from a description on this machine, its weights left to whoever loads them.

    Args:
        text: What a model says of its text tower; one that is not of transformers stays as it is.
        folder: The model's own, whose ``config.json`` may describe the tower; else the hub's cache does.

    Raises:
        EncoderError: If neither does, or the description asks for code.
    """
    name = text.get("hf_model_name")
    if not name:
        return dict(text)
    own, cached = None if folder is None else folder / DESCRIPTION, cached_file(name, DESCRIPTION)
    path = own if own is not None and own.is_file() and _is_tower(own) else cached
    if path is None or not _is_tower(path):
        raise EncoderError(
            f"The text tower {name} is described nowhere on this machine: {_fetch(DESCRIPTION, name, folder)}."
        )
    return {**text, "hf_model_name": str(path.parent), "hf_model_pretrained": False}


def _is_tower(path: Path) -> bool:
    """Whether a file describes a tower that open_clip can build, and not the whole model, as the hub has it, too."""
    from open_clip.hf_configs import arch_dict

    found = read_json(path, dict[str, Any], "a description of a model of transformers", "copy it anew", EncoderError)
    require_plain(found, path)
    return found.get("model_type") in arch_dict


def tokenizer_from_here(source: str, text: Mapping[str, Any]) -> Any:
    """A model's tokenizer, of what is on this machine.

    Args:
        source: The model, as open_clip names it.
        text: Its "text_cfg".

    Raises:
        EncoderError: If files are missing or damaged.
    """
    import open_clip

    name = text.get("hf_tokenizer_name")
    if not name:
        return open_clip.get_tokenizer(source)
    place = source.removeprefix("local-dir:")
    try:
        return open_clip.get_tokenizer(source, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, ImportError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        files = f"tokenizer.json and {TOKENIZER}"
        raise EncoderError(
            f"The tokenizer of {place} cannot be read ({reason}): "
            f"{_fetch(files, name, None if place == source else Path(place))}."
        ) from error


def _fetch(files: str, name: str, folder: Path | None) -> str:
    """What to do for files of the hub."""
    where = f"keep them in the hub's cache (`hf download {name}`)" if folder is None else f"put them into {folder}"
    return f"fetch {files} from https://huggingface.co/{name} where there is a network, and {where}"
