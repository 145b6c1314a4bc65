"""HIVE in PyTorch: a decoder that reads depths of a SigLIP encoder.

"Hierarchical Pre-Training of Vision Encoders with Large Language Models",
arXiv 2604.00086. Encoder and decoder are those of transformers (4.57 and 5); this
file has what connects them. Shapes:

    B batch            T text tokens      P image patches    S side of an image
    N query heads      K kv heads         H head dimension   D encoder width
    E decoder width    V vocabulary
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.utils import can_return_tuple

from .configuration_hive import HiveConfig

KeysValues = tuple[torch.Tensor, torch.Tensor]

# What transformers calls the cache, in calls and outputs: renamed in 5.24.
_FIELDS = {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}
_CACHE = "cache" if "cache" in _FIELDS else "past_key_values"


@dataclasses.dataclass
class Image:
    """The images of a batch as the decoder reads them: for each connection keys and
    values [B, K, P, H], and `sees` bool [B, T], the tokens that see their image.

    A cache keeps it as its attribute `image`, with `sees` [B, 1] of its last token.
    """

    keys_values: list[KeysValues]
    sees: torch.Tensor


class Projector(nn.Module):
    """Features of one depth to the decoder's width, [B, P, D] -> [B, P, E]."""

    def __init__(self, config: HiveConfig):
        super().__init__()
        vision_width = config.vision_config.hidden_size
        text_width = config.text_config.hidden_size
        # The epsilon of training; torch's default is 1e-5.
        self.norm = nn.LayerNorm(vision_width, eps=1e-6)
        self.linear_1 = nn.Linear(vision_width, text_width)
        self.linear_2 = nn.Linear(text_width, text_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.linear_1(self.norm(features))
        # The tanh approximation of training; torch's default is exact.
        return self.linear_2(F.gelu(hidden, approximate="tanh"))


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


class HiveForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Next-token logits of text that sees an image; see `forward`.

    Without an lm_head, logits are the hidden states times the token embeddings.
    Gemma 2 runs with eager attention where it would with sdpa, which cannot soft-cap.
    """

    config_class = HiveConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: HiveConfig):
        super().__init__(config)
        text = config.text_config
        soft_capped = getattr(text, "attn_logit_softcapping", None)
        if soft_capped and text._attn_implementation in (None, "sdpa"):
            text._attn_implementation = "eager"
        vision_model = AutoModel.from_config(config.vision_config)
        # In transformers 4 it is wrapped once more than in 5.
        self.vision_model = getattr(vision_model, "vision_model", vision_model)
        self.language_model = AutoModel.from_config(text)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.projectors = nn.ModuleList(Projector(config) for _ in config.connections)
        self.cross_attentions = nn.ModuleList()
        for number, (_, layer) in enumerate(config.connections):
            block = CrossAttention(config, number)
            self.cross_attentions.append(block)
            self.language_model.layers[layer - 1].register_forward_pre_hook(
                block.before_layer, with_kwargs=True
            )
        self.post_init()

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        # These norms multiply by 1 + weight; a closed gate leaves the decoder as is.
        if isinstance(module, GemmaRMSNorm):
            nn.init.zeros_(module.weight)
        elif isinstance(module, CrossAttention):
            nn.init.zeros_(module.gate)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs=None, **kwargs
    ):
        """As in PreTrainedModel, but not re-entrant; ValueError for use_reentrant=True.

        Re-entrant, it would go back through the encoder once for each connection, and
        lose the gradients of trained layers above frozen ones.
        """
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        if options["use_reentrant"]:
            raise ValueError("use_reentrant is True; expected False, or leave it out")
        super().gradient_checkpointing_enable(options, **kwargs)

    def image_keys_values(self, pixel_values: torch.Tensor) -> list[KeysValues]:
        """float [B, 3, S, S] in [-1, 1] -> for each connection keys and values
        [B, K, P, H], from the output of its encoder block before the final norm."""
        depths = [depth for depth, _ in self.config.connections]
        # Index 0 is the embeddings, so that depths count from 1. Blocks after the
        # deepest connection do not run.
        features = [self.vision_model.embeddings(pixel_values)]
        for block in self.vision_model.encoder.layers[: max(depths, default=0)]:
            features.append(block(features[-1], attention_mask=None))
        return [
            block.keys_values(projector(features[depth]))
            for depth, projector, block in zip(
                depths, self.projectors, self.cross_attentions, strict=True
            )
        ]

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        image_mask=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        inputs_embeds=None,
        position_ids=None,
        logits_to_keep=0,
        cache=None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] of the tokens of this call, and the loss of `labels`.

        Args:
          input_ids: int [B, T]; or inputs_embeds [B, T, E] as get_input_embeddings()
            gives them.
          pixel_values: float [B, 3, S, S] in [-1, 1]. Without them the tokens see the
            image that `past_key_values` keeps, or none.
          image_mask: bool [B, T], False for a token that does not see the image of its
            sample. By default all do; with the image of a cache, as the last token did.
          past_key_values: a Cache, which keeps images too (see `Image`).
          cache: the same; its name from transformers 5.24 on.
          labels: int [B, T], shifted here; -100 where there is no loss.
          logits_to_keep: how many of the last positions get logits (0: all), or which.
          kwargs: what else the decoder takes, output_hidden_states for example.

        Raises:
          ValueError: pixel_values or image_mask of another shape than expected, or
            image_mask without an image.
        """
        if cache is None:
            cache = past_key_values
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        image = self._image(pixel_values, image_mask, cache, tokens.shape[:2])
        outputs = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{_CACHE: cache},
            **(kwargs if image is None else {**kwargs, "image": image}),
        )
        cache = getattr(outputs, _CACHE)
        if image is not None and cache is not None:
            cache.image = Image(image.keys_values, image.sees[:, -1:])
        if isinstance(logits_to_keep, int):
            # slice(-0, None) is everything.
            logits_to_keep = slice(-logits_to_keep, None)
        # Cut before the product with the vocabulary, the largest of a forward pass.
        logits = self._logits(outputs.last_hidden_state[:, logits_to_keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{_CACHE: cache},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _image(self, pixel_values, image_mask, cache, shape) -> Image | None:
        """The image for tokens of `shape` (B, T): a new one, the cached one or none."""
        cached = getattr(cache, "image", None)
        if cached and not torch.compiler.is_compiling() and not cache.get_seq_length():
            cached = cache.image = None  # a static cache that was reset
        if pixel_values is not None:
            vision = self.config.vision_config
            side = vision.image_size
            expected = (shape[0], vision.num_channels, side, side)
            meaning = "one image for each sample, resized to the encoder's size"
            _require_shape("pixel_values", pixel_values, expected, meaning)
            keys_values = self.image_keys_values(pixel_values)
            sees = torch.ones(shape, dtype=torch.bool, device=pixel_values.device)
        elif cached:
            keys_values, sees = cached.keys_values, cached.sees.expand(shape)
        elif image_mask is None:
            return None
        else:
            raise ValueError("image_mask came without pixel_values; give both or none")
        if image_mask is not None:
            meaning = "one bool for each token of this call"
            _require_shape("image_mask", image_mask, shape, meaning)
            sees = image_mask.bool()
        return Image(keys_values, sees)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        head = self.get_output_embeddings()
        weight = (self.get_input_embeddings() if head is None else head).weight
        # accelerate's offloading moves weights around forward calls of their own
        # module; here the table is read outside of one.
        if weight.is_meta and not hidden.is_meta:
            raise ValueError(
                "the output head is offloaded, and logits need it; give a device_map "
                "that keeps language_model.embed_tokens, or lm_head if the model has "
                "one, on a device"
            )
        logits = F.linear(hidden, weight)
        # Gemma 2 has it, and not every configuration has the key.
        limit = getattr(self.config.text_config, "final_logit_softcapping", None)
        return torch.tanh(logits / limit) * limit if limit else logits

    def prepare_inputs_for_generation(
        self, input_ids, inputs_embeds=None, image_mask=None, **kwargs
    ):
        inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        if image_mask is not None:
            # New tokens see the image if the last one of the prompt does.
            new = max(0, input_ids.shape[1] - image_mask.shape[1])
            last = image_mask[:, -1:].expand(-1, new)
            image_mask = torch.cat([image_mask, last], dim=1)
            cache = inputs.get(_CACHE)
            if cache is not None and cache.get_seq_length():
                ids, embeds = inputs["input_ids"], inputs.get("inputs_embeds")
                tokens = ids if embeds is None else embeds
                image_mask = image_mask[:, -tokens.shape[1] :]
            inputs["image_mask"] = image_mask
        return inputs

    def _update_model_kwargs_for_generation(
        self, outputs, model_kwargs, *args, **kwargs
    ):
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        if outputs.get(_CACHE) is not None:
            model_kwargs.pop("pixel_values", None)  # from here on the cache keeps them
        return model_kwargs


def _require_shape(name: str, tensor: torch.Tensor, expected: tuple, meaning: str):
    if list(tensor.shape) != list(expected):
        raise ValueError(
            f"{name} is {list(tensor.shape)}; expected {list(expected)}: {meaning}"
        )
