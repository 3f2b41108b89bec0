"""Word pieces as EgoVideo's text tower has learnt them: BERT's, but nothing is put behind the last one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from divff_nerfstudio.errors import install_extra
from divff_nerfstudio.features.pretrained import EncoderError

_UNKNOWN, _START, _PADDING = "[UNK]", "[CLS]", "[PAD]"
_SPECIAL = (_UNKNOWN, _START, _PADDING, "[SEP]", "[MASK]")


class WordPieces:
    """Turns phrases into numbers of word pieces: [CLS], the pieces, and padding.

    A stock tokenizer of BERT closes with [SEP]; EgoVideo was trained without.

    Args:
        words: The vocabulary in order.
        length: Length of every row, [CLS] included; what is longer is cut off.

    Raises:
        EncoderError: If the vocabulary lacks the special words.
    """

    def __init__(self, words: Sequence[str], length: int = 20):
        try:
            from tokenizers import Tokenizer
            from tokenizers.models import WordPiece
            from tokenizers.normalizers import BertNormalizer
            from tokenizers.pre_tokenizers import BertPreTokenizer
        except ImportError:
            raise EncoderError(f"EgoVideo's words need the package tokenizers: {install_extra('features')}.") from None

        self.length = length
        numbers = {word: number for number, word in enumerate(words)}
        missing = [word for word in (_PADDING, _UNKNOWN, _START) if word not in numbers]
        if missing:
            raise EncoderError(
                f"The vocabulary lacks {', '.join(missing)}: give vocab.txt of bert-large-uncased, one word a line."
            )
        self._start, self._padding = numbers[_START], numbers[_PADDING]
        self._tokenizer = Tokenizer(WordPiece(numbers, unk_token=_UNKNOWN))
        self._tokenizer.normalizer = BertNormalizer(lowercase=True)  # pyright: ignore[reportAttributeAccessIssue]
        self._tokenizer.pre_tokenizer = BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
        self._tokenizer.add_special_tokens([word for word in _SPECIAL if word in numbers])

    @classmethod
    def read(cls, path: Path, words: int, length: int = 20) -> WordPieces:
        """Reads a vocabulary, one word a line.

        Args:
            path: The file.
            words: How many the text tower knows.
            length: See `WordPieces`.

        Raises:
            EncoderError: If it cannot be read, or has another number of words.
        """
        try:
            found = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise EncoderError(f"{path} cannot be read ({error}): give vocab.txt of bert-large-uncased.") from None
        if len(found) != words:
            raise EncoderError(
                f"{path} has {len(found)} words, not the {words} of the text tower: give vocab.txt of "
                "bert-large-uncased."
            )
        return cls(found, length)

    def __call__(self, phrases: Sequence[str]) -> tuple[Int[Tensor, "phrases length"], Int[Tensor, "phrases length"]]:
        """Numbers of the word pieces, and 1 where there is one, 0 where there is padding."""
        ids = torch.full((len(phrases), self.length), self._padding)
        mask = torch.zeros_like(ids)
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(phrases), add_special_tokens=False)):
            pieces = [self._start, *encoding.ids[: self.length - 1]]
            ids[row, : len(pieces)] = torch.tensor(pieces)
            mask[row, : len(pieces)] = 1
        return ids, mask
