"""Configuration of HIVE: a decoder that reads depths of a SigLIP encoder.

"Hierarchical Pre-Training of Vision Encoders with Large Language Models",
arXiv 2604.00086. For transformers 4.57 and 5.
"""

from typing import ClassVar

from transformers import AutoConfig, PretrainedConfig


class HiveConfig(PretrainedConfig):
    """What a HIVE model is made of.

    Args:
      vision_config: a siglip_vision_model configuration, or its dict.
      text_config: configuration of a causal decoder (gemma3_text, llama, qwen2 and
        others), or its dict.
      fusion: "hive" (each connected decoder layer reads its own encoder depth by
        cross-attention), "cascaded" (all read the last one; the depths are those of
        `connections`) or "joint" (image and text in one softmax).
      connections: pairs [encoder depth, decoder layer], counted from 1, with
        increasing decoder layers; empty for the decoder alone.
      projector: "ln_mlp", "mlp" or "linear".
      image_kv: of "joint", "shared" (the decoder layer makes the image's keys and
        values) or "own".
      image_rope: of "joint", whether patches have positions by row and column.
      kwargs: as of PretrainedConfig. bos_token_id, eos_token_id and pad_token_id are
        by default those of `text_config`.

    Raises:
      ValueError: an unknown fusion, or connections that do not fit the two models.
    """

    model_type = "hive"
    sub_configs: ClassVar = {"vision_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config=None,
        text_config=None,
        fusion="hive",
        connections=(),
        projector="ln_mlp",
        image_kv="shared",
        image_rope=True,
        tie_word_embeddings=True,
        **kwargs,
    ):
        self.vision_config = _sub_config(vision_config, "siglip_vision_model")
        self.text_config = _sub_config(text_config, "gemma3_text")
        self.fusion = fusion
        self.projector = projector
        self.image_kv = image_kv
        self.image_rope = image_rope
        self.connections = [list(pair) for pair in connections]
        # Before PretrainedConfig, so that an impossible config.json is refused with a
        # reason.
        self._require_possible()
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            # `generate` reads these ids from the outer configuration.
            kwargs.setdefault(name, getattr(self.text_config, name, None))
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    def _require_possible(self):
        for key, known in (
            ("fusion", ("hive", "cascaded", "joint")),
            ("projector", ("ln_mlp", "mlp", "linear")),
            ("image_kv", ("shared", "own")),
        ):
            if getattr(self, key) not in known:
                value = getattr(self, key)
                raise ValueError(f"{key} is {value!r}; expected one of {known}")
        depths = self.vision_config.num_hidden_layers
        layers = self.text_config.num_hidden_layers
        for pair in self.connections:
            fits = len(pair) == 2 and 1 <= pair[0] <= depths and 1 <= pair[1] <= layers
            if not fits:
                raise ValueError(
                    f"connection {pair} is out of range; expected [encoder depth of 1 "
                    f"to {depths}, decoder layer of 1 to {layers}]. Correct "
                    "`connections` in config.json, or the sub configuration."
                )
        connected = [layer for _, layer in self.connections]
        if connected != sorted(set(connected)):
            raise ValueError(
                f"connected decoder layers are {connected}; expected them to increase. "
                "Correct `connections` in config.json."
            )


def _sub_config(config, model_type):
    """A configuration from itself, a dict, or None (the defaults of `model_type`)."""
    if isinstance(config, PretrainedConfig):
        return config
    # A model_type in the dict comes after the default, and so takes precedence.
    config = _with_flat_rope({"model_type": model_type, **(config or {})})
    return AutoConfig.for_model(**config)


def _with_flat_rope(config):
    """The dict with the rotary embedding under the names that transformers 4 reads.

    Version 5 reads these too but writes `rope_parameters`, which version 4 would
    ignore without a word, and take its default bases.
    """
    rope = config.get("rope_parameters") or {}
    global_rope = rope.get("full_attention", rope)
    local_rope = rope.get("sliding_attention", {})
    if "rope_theta" not in global_rope:
        return config
    config = {key: value for key, value in config.items() if key != "rope_parameters"}
    config["rope_theta"] = global_rope["rope_theta"]
    if global_rope.get("rope_type", "default") != "default":
        keys = global_rope.keys() - {"rope_theta"}
        config["rope_scaling"] = {key: global_rope[key] for key in sorted(keys)}
    if "rope_theta" in local_rope:
        config["rope_local_base_freq"] = local_rope["rope_theta"]
    return config
