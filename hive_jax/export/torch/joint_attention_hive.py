"""Image and text in one softmax of a connected decoder layer ("joint").

As in the authors' code (github.com/eugenelet/HIVE): patches have rotary positions by row
and column, the text after them follows on, and RMSNorms of the connection are applied to
queries and keys after the rotation. Samples without an image have the plain layer.

transformers lets a model name its attention function: ours gets queries and keys after
the rotation, and after the layer's cache.
"""

import functools
import inspect
import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from .configuration_hive import HiveConfig
from .connections_hive import Image, KeysValues

JOINT = "hive_joint"


class JointAttention(nn.Module):
    """The norms of a connection, and its projections of the image if it has its own.

    `attention` is that of the connected layer, which has biases or none.
    """

    def __init__(self, config: HiveConfig, number: int, attention: nn.Module):
        super().__init__()
        text = config.text_config
        self.number, self.head_dim = number, text.head_dim
        self.layer = config.connections[number][1] - 1
        self.image_rope = config.image_rope
        self.q_norm = GemmaRMSNorm(text.head_dim, eps=text.rms_norm_eps)
        self.k_norm = GemmaRMSNorm(text.head_dim, eps=text.rms_norm_eps)
        self.k_proj = self.v_proj = None
        if config.image_kv == "own":
            sizes = text.hidden_size, text.num_key_value_heads * text.head_dim
            bias = attention.k_proj.bias is not None
            self.k_proj = nn.Linear(*sizes, bias=bias)
            self.v_proj = nn.Linear(*sizes, bias=bias)

    def keys_values(
        self, projected: torch.Tensor, decoder: nn.Module, start: torch.Tensor
    ) -> KeysValues:
        """[B, P, E] and the position of the first token after the image, int [B] ->
        keys and values [B, K, P, H]."""
        layer = decoder.layers[self.layer]
        attention = layer.self_attn
        hidden = layer.input_layernorm(projected)
        keys = self._heads((self.k_proj or attention.k_proj)(hidden))
        values = self._heads((self.v_proj or attention.v_proj)(hidden))
        if getattr(attention, "k_norm", None) is not None:
            keys = attention.k_norm(keys)
        patches = torch.arange(projected.shape[1], device=start.device)
        side = math.isqrt(len(patches))
        axes = [patches] * 3
        if self.image_rope:
            axes = [
                patches // side,
                patches % side,
                torch.full_like(patches, side // 2),
            ]
        # Even frequencies of the first 6/8 turn with the row, odd ones with the column.
        number = torch.arange(self.head_dim // 2, device=start.device)
        axis = torch.where(number < 6 * len(number) // 8, number % 2, 2).repeat(2)
        turns = [self._turn(decoder, keys, start[:, None] + one) for one in axes]
        cos, sin = (
            sum(turn[part] * (axis == index) for index, turn in enumerate(turns))
            for part in (0, 1)
        )
        return self.k_norm(_rotate(keys, cos, sin)), values

    def before_attention(
        self, decoder: nn.Module, attention: nn.Module, arguments: tuple, keywords: dict
    ):
        """Forward pre-hook of the layer's attention: passes `joint` in place of `image`,
        a keyword that it hands on to its attention function."""
        image = keywords.pop("image", None)
        if image is None:
            return None
        joint = functools.partial(self.attend, decoder, image)
        return arguments, {**keywords, "joint": joint}

    def attend(
        self, decoder, image: Image, query, key, value, mask, scale, softcap
    ) -> torch.Tensor:
        """Attention of queries [B, N, T, H] to image and text -> [B, T, N, H]; `mask` is
        to be added to the logits [B, N, T, S]."""
        image_key, image_value = image.keys_values[self.number]
        patches = image_key.shape[2]
        shift = math.isqrt(patches) if self.image_rope else patches
        is_there = image.is_there[:, None]

        def follow(x, norm):
            # The last of all tokens so far: the cache of a sliding layer has no others.
            first = torch.clamp(torch.as_tensor(image.length - x.shape[2]), min=0)
            slots = torch.arange(x.shape[2], device=x.device)[None] + first
            after = slots >= image.slot[:, None]
            cos, sin = self._turn(decoder, x, torch.where(after, shift, 0))
            turned = norm(_rotate(x, cos, sin))
            return torch.where(is_there[..., None, None], turned, x)

        query = follow(query, self.q_norm)
        key = torch.cat([image_key, follow(key, self.k_norm)], dim=2)
        value = torch.cat([image_value, value], dim=2)
        hidden = torch.finfo(query.dtype).min
        image_mask = torch.where(image.sees, 0.0, hidden).to(query.dtype)
        image_mask = image_mask[:, None, :, None]
        image_mask = image_mask.expand(-1, -1, query.shape[2], patches)
        mask = mask.expand(len(query), -1, -1, -1)
        mask = torch.cat([image_mask, mask], dim=3)
        return _attention(query, key, value, mask, scale, softcap)

    def _turn(self, decoder, x: torch.Tensor, position: torch.Tensor):
        """Cosines and sines [B, T, H] of positions int [B, T], as the layer has them."""
        rotary, kinds = decoder.rotary_emb, getattr(decoder.config, "layer_types", None)
        kind = kinds[self.layer] if kinds else None
        # Gemma 3, whose sliding layers have a base of their own, in transformers 4 and 5.
        if kind == "sliding_attention" and hasattr(decoder, "rotary_emb_local"):
            rotary = decoder.rotary_emb_local
        by_kind = "layer_type" in inspect.signature(rotary.forward).parameters
        return rotary(x, position, kind) if by_kind else rotary(x, position)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        # [B, P, K * H] -> [B, K, P, H]
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates heads [B, N, T, H] by angles whose cosines and sines are [B, T, H]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def _attention(query, key, value, mask, scale, softcap) -> torch.Tensor:
    if not softcap:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous()
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    logits = torch.tanh(query @ key.transpose(2, 3) * (scale / softcap)) * softcap
    weights = torch.softmax(logits + mask, dim=-1, dtype=torch.float32)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous()


def attention_function(
    module, query, key, value, attention_mask, scaling, softcap=None, joint=None, **_
):
    """The attention of all layers; in connected ones with `joint`, if there is an image."""
    inputs = query, key, value, attention_mask[..., : key.shape[2]], scaling, softcap
    return (_attention if joint is None else joint)(*inputs), None


AttentionInterface.register(JOINT, attention_function)
# A mask of numbers to be added, whatever the length and the cache.
AttentionMaskInterface.register(JOINT, eager_mask)
