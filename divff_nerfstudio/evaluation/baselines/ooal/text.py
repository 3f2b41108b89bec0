"""OOAL's prompts, a few learned vectors before the name of a class, and CLIP's text transformer that reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from divff_nerfstudio.evaluation.baselines.ooal.shape import OoalShape
from divff_nerfstudio.features.pretrained import EncoderError


class PromptLearner(nn.Module):
    """What a prompt is made of.

    Args:
        shape: Sizes.
    """

    token_prefix: Tensor
    token_suffix: Tensor

    def __init__(self, shape: OoalShape):
        super().__init__()
        behind = shape.context - 1 - shape.learned
        self.ctx = nn.Parameter(torch.zeros(shape.learned, shape.text_width))
        self.register_buffer("token_prefix", torch.zeros(shape.classes, 1, shape.text_width))
        self.register_buffer("token_suffix", torch.zeros(shape.classes, behind, shape.text_width))

    def forward(self, tokens: Float[Tensor, "classes context dim"]) -> Float[Tensor, "classes context dim"]:
        """Prompts whose places behind the start are taken by the learned vectors."""
        count = len(self.ctx)
        learned = self.ctx.expand(len(tokens), -1, -1)
        return torch.cat((tokens[:, :1], learned, tokens[:, 1 + count :]), dim=1)


class PromptEncoder(nn.Module):
    """CLIP's text transformer (Radford et al. 2021, in open_clip), without its table of tokens.

    Args:
        shape: Sizes.
    """

    def __init__(self, shape: OoalShape):
        from open_clip.transformer import QuickGELU, Transformer

        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(shape.context, shape.text_width))
        ratio = shape.text_hidden / shape.text_width
        self.transformer = Transformer(
            shape.text_width, shape.text_layers, shape.text_heads, ratio, act_layer=QuickGELU, batch_first=True
        )
        self.ln_final = nn.LayerNorm(shape.text_width)
        self.text_projection = nn.Parameter(torch.zeros(shape.text_width, shape.embedding))

    def forward(
        self, prompts: Float[Tensor, "classes context dim"], ends: Int[Tensor, "classes"]
    ) -> Float[Tensor, "classes embedding"]:
        """Embeddings, not of unit length, of prompts whose last token is at `ends`."""
        tokens = prompts + self.positional_embedding
        mask = torch.full((tokens.shape[1],) * 2, float("-inf"), device=tokens.device).triu(1)
        tokens = self.transformer(tokens, attn_mask=mask)
        return self.ln_final(tokens)[torch.arange(len(tokens)), ends] @ self.text_projection


def prompt_ids(names: Sequence[str], context: int, learned: int) -> Int[Tensor, "classes context"]:
    """CLIP's tokens of the prompts of classes; where the learned vectors go, each is an X.

    Args:
        names: Names of the classes, words apart or joined by underscores.
        context: Tokens of a prompt.
        learned: Learned vectors in a prompt.
    """
    from open_clip import SimpleTokenizer

    placeholders = " ".join(["X"] * learned)
    return SimpleTokenizer(context_length=context)([f"{placeholders} {name.replace('_', ' ')}." for name in names])


class TokenRows:
    """Rows of CLIP's table of tokens: those that the prompts in a file of weights hold, others from CLIP itself.

    Args:
        file: The file, for messages.
        names: Names of the classes that the file was trained on, in its order.
        learner: The prompts as they are in the file.
        table: Loads CLIP's whole table; called once, at the first token that the prompts do not hold.

    Raises:
        EncoderError: If the prompts in the file are not of these names.
    """

    def __init__(
        self,
        file: str,
        names: Sequence[str],
        learner: PromptLearner,
        table: Callable[[], Float[Tensor, "tokens dim"]],
    ):
        self.learned, behind = len(learner.ctx), learner.token_suffix.shape[1]
        self.context, self._load = 1 + self.learned + behind, table
        if len(names) != len(learner.token_prefix):
            raise EncoderError(
                f"{file} was trained on {len(learner.token_prefix)} classes, not on these {len(names)}: give the names "
                "that it was trained on."
            )
        ids = prompt_ids(names, self.context, self.learned)
        ids = torch.cat((ids[:, :1], ids[:, 1 + self.learned :]), dim=1).flatten()
        rows = torch.cat((learner.token_prefix, learner.token_suffix), dim=1).flatten(0, 1)
        self._known, place = ids.unique(return_inverse=True)
        self._rows = torch.zeros(len(self._known), rows.shape[1]).index_copy(0, place, rows)
        if not torch.equal(self._rows[place], rows):
            raise EncoderError(
                f"The prompts in {file} are not of the classes {', '.join(names)}: give the names that it was trained "
                "on, in their order."
            )

    def __call__(self, names: Sequence[str]) -> tuple[Float[Tensor, "classes context dim"], Int[Tensor, "classes"]]:
        """Embedded tokens of the prompts of any classes, and where each prompt ends.

        Raises:
            EncoderError: If CLIP's table is needed and cannot be had, or is another one.
        """
        ids = prompt_ids(names, self.context, self.learned)
        outside = torch.ones_like(ids, dtype=torch.bool)
        outside[:, 1 : 1 + self.learned] = False
        if not torch.isin(ids[outside], self._known).all():
            self._take(self._load())
        place = torch.searchsorted(self._known, ids).clamp_max(len(self._known) - 1)
        return self._rows[place], ids.argmax(dim=1)

    def _take(self, table: Float[Tensor, "tokens dim"]) -> None:
        """Takes CLIP's table in place of the rows that are known."""
        fits = table.shape[1] == self._rows.shape[1] and len(table) > int(self._known.max())
        if not fits or not torch.allclose(table[self._known], self._rows, atol=1e-3):
            raise EncoderError(
                "The CLIP that was given for OOAL's class names has other tokens than OOAL was trained with: give "
                "OpenAI's ViT-B-16 (--models.ooal-clip ViT-B-16/openai, or ViT-B-16/ and its file)."
            )
        self._known, self._rows = torch.arange(len(table)), table
