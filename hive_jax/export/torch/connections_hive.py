"""What connects encoder and decoder of HIVE: images, projectors and cross-attention.

Shapes as in modeling_hive.py.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from .configuration_hive import HiveConfig

KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclasses.dataclass
class Image:
    """The images of a batch as the decoder reads them, which a cache keeps as its
    attribute `image`.

    Attributes:
      keys_values: for each connection, [B, K, P, H].
      sees: bool [B, T], the tokens that see their image; of a cache [B, 1].
      slot: int [B], index of the first token after the image.
      is_there: bool [B], samples with an image.
      length: number of tokens so far, those of this call included.
    """

    keys_values: list[KeysValues]
    sees: torch.Tensor
    slot: torch.Tensor
    is_there: torch.Tensor
    length: int

    def of_last_token(self):
        return dataclasses.replace(self, sees=self.sees[:, -1:])


class Projector(nn.Module):
    """Features of one depth to the decoder's width, [B, P, D] -> [B, P, E]."""

    def __init__(self, config: HiveConfig):
        super().__init__()
        vision_width = config.vision_config.hidden_size
        text_width = config.text_config.hidden_size
        # As in training; torch's defaults are an epsilon of 1e-5 and the exact GELU.
        self.norm = nn.Identity()
        if config.projector == "ln_mlp":
            self.norm = nn.LayerNorm(vision_width, eps=1e-6)
        self.linear_1 = nn.Linear(vision_width, text_width)
        self.linear_2 = None
        if config.projector != "linear":
            self.linear_2 = nn.Linear(text_width, text_width)
        self.gelu = "none" if config.fusion == "joint" else "tanh"

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.linear_1(self.norm(features))
        if self.linear_2 is None:
            return hidden
        return self.linear_2(F.gelu(hidden, approximate=self.gelu))


class CrossAttention(nn.Module):
    """What a connected decoder layer reads from its depth, times tanh(gate): the
    decoder's own head layout with QK-norm, no biases, no MLP."""

    def __init__(self, config: HiveConfig, number: int):
        super().__init__()
        text = config.text_config
        width, self.head_dim = text.hidden_size, text.head_dim
        query_width = text.num_attention_heads * text.head_dim
        key_width = text.num_key_value_heads * text.head_dim
        self.number = number
        self.norm = GemmaRMSNorm(width, eps=1e-6)
        self.q_proj = nn.Linear(width, query_width, bias=False)
        self.k_proj = nn.Linear(width, key_width, bias=False)
        self.v_proj = nn.Linear(width, key_width, bias=False)
        self.o_proj = nn.Linear(query_width, width, bias=False)
        self.q_norm = GemmaRMSNorm(text.head_dim, eps=1e-6)
        self.k_norm = GemmaRMSNorm(text.head_dim, eps=1e-6)
        # tanh(0) = 0: until it is trained, the decoder computes what it did without
        # images.
        self.gate = nn.Parameter(torch.zeros(1))

    def keys_values(self, projected: torch.Tensor) -> KeysValues:
        """[B, P, E] -> keys and values [B, K, P, H]."""
        keys = self.k_norm(self._heads(self.k_proj(projected)))
        return keys, self._heads(self.v_proj(projected))

    def forward(self, hidden: torch.Tensor, image: Image) -> torch.Tensor:
        """[B, T, E] -> what to add to it, exactly zero for tokens without sight."""
        queries = self.q_norm(self._heads(self.q_proj(self.norm(hidden))))
        keys, values = image.keys_values[self.number]
        read = F.scaled_dot_product_attention(
            queries, keys, values, scale=self.head_dim**-0.5, enable_gqa=True
        )
        read = torch.tanh(self.gate) * self.o_proj(read.transpose(1, 2).flatten(2))
        # Instead of a mask in the attention: a token sees all patches or none.
        return torch.where(image.sees[..., None], read, 0.0)

    def before_layer(self, layer: nn.Module, arguments: tuple, keywords: dict):
        """Forward pre-hook of the connected layer: adds to its input what is read.

        The image comes with the call, as a keyword that transformers' decoders hand
        on to their layers; between calls nothing of it is left in the model.
        """
        image = keywords.pop("image", None)
        if image is None:
            return None
        # A pre-hook that returns (arguments, keywords) replaces both for the layer.
        hidden, *others = arguments
        return (hidden + self(hidden, image), *others), keywords

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        # [B, T, N * H] -> [B, N, T, H]
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
