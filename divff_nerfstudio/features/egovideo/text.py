"""EgoVideo's text tower: the first layers of BERT (Devlin et al. 2019, in transformers), read out at the first token.

Modules bear the names of the published state dict (``textual.*``, ``text_projection``), which transformers has, too.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from divff_nerfstudio.errors import install_extra
from divff_nerfstudio.features.egovideo.shape import EgoVideoShape
from divff_nerfstudio.features.pretrained import EncoderError


class TextTower(nn.Module):
    """The text tower with its projection into the space that clips and texts share.

    Args:
        shape: Sizes.

    Raises:
        EncoderError: If transformers is not installed.
    """

    def __init__(self, shape: EgoVideoShape):
        super().__init__()
        try:
            from transformers import BertConfig, BertModel
        except ImportError:
            raise EncoderError(
                f"EgoVideo's text tower needs the package transformers: {install_extra('features')}."
            ) from None
        config = BertConfig(
            vocab_size=shape.words,
            hidden_size=shape.text_width,
            num_hidden_layers=shape.text_layers,
            num_attention_heads=shape.text_heads,
            intermediate_size=shape.text_hidden,
            max_position_embeddings=shape.text_positions,
            type_vocab_size=shape.text_types,
        )
        self.textual = BertModel(config, add_pooling_layer=False)
        for name, _ in tuple(self.textual.named_buffers()):  # constants that are in no state dict, and that are given
            setattr(self.textual.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], None)
        self.text_projection = nn.Parameter(shape.text_width**-0.5 * torch.randn(shape.text_width, shape.dimension))

    def forward(
        self, ids: Int[Tensor, "texts length"], mask: Int[Tensor, "texts length"]
    ) -> Float[Tensor, "texts dimension"]:
        """Embeddings of texts, not of unit length; `mask` is 1 where there is a word piece, else 0."""
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        found = self.textual(ids, attention_mask=mask, position_ids=places, token_type_ids=torch.zeros_like(ids))
        return found.last_hidden_state[:, 0] @ self.text_projection
