"""Parameters of transformers' SigLIP and Gemma models as hive_jax names them.

A table maps our name to (transform, their name or names).
"""

import numpy as np
from flax import traverse_util


def siglip_params(model) -> dict:
    """A SiglipModel's parameters as those of `TwoTowers`."""
    state = _arrays(model)
    vision, text = model.config.vision_config, model.config.text_config
    vision_heads, text_heads = vision.num_attention_heads, text.num_attention_heads
    flat = {
        **_rows(state, _vision_tower(vision_heads), "img/"),
        **_layers(
            state,
            _encoder_block(vision_heads),
            "img/Transformer/encoderblock/",
            "vision_model.encoder.layers.{}.",
            vision.num_hidden_layers,
        ),
        **_rows(state, _TEXT_TOWER, "txt/"),
        **_layers(
            state,
            _encoder_block(text_heads),
            "txt/Encoder_0/encoderblock/",
            "text_model.encoder.layers.{}.",
            text.num_hidden_layers,
        ),
        "t": state["logit_scale"],
        "b": state["logit_bias"],
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def gemma_params(model) -> dict:
    """The parameters of a Gemma, Gemma 2 or Gemma 3 model as those of `Gemma`."""
    state = _arrays(model)
    config = model.config
    table = _decoder_block(config.num_attention_heads, config.num_key_value_heads)
    if config.model_type == "gemma":
        table |= _TWO_NORMS
    else:
        table |= _FOUR_NORMS
    if config.model_type == "gemma3_text":
        table |= _QK_NORMS
    flat = {
        "embedder/input_embedding": state["model.embed_tokens.weight"],
        "final_norm/scale": state["model.norm.weight"],
        **_layers(
            state, table, "layers/", "model.layers.{}.", config.num_hidden_layers
        ),
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def _same(x):
    return x


def _transposed(w):
    return w.T


def _batched(x):
    return x[None]


def _hwio(w):
    return w.transpose(2, 3, 1, 0)


def _heads(heads):
    """[N * H, D] -> [D, N, H]; the bias [N * H] -> [N, H]."""
    return lambda x: x.T.reshape(*x.shape[1:], heads, -1)


def _merged(heads):
    """[D, N * H] -> [N, H, D]."""
    return lambda w: w.T.reshape(heads, -1, w.shape[0])


def _third(number, transform):
    """`transform` of the query (0), key (1) or value (2) of a joint projection."""
    return lambda x: transform(np.split(x, 3)[number])


def _encoder_block(heads):
    attention = "MultiHeadDotProductAttention_0"
    return {
        "LayerNorm_0/scale": (_same, "layer_norm1.weight"),
        "LayerNorm_0/bias": (_same, "layer_norm1.bias"),
        f"{attention}/query/kernel": (_heads(heads), "self_attn.q_proj.weight"),
        f"{attention}/query/bias": (_heads(heads), "self_attn.q_proj.bias"),
        f"{attention}/key/kernel": (_heads(heads), "self_attn.k_proj.weight"),
        f"{attention}/key/bias": (_heads(heads), "self_attn.k_proj.bias"),
        f"{attention}/value/kernel": (_heads(heads), "self_attn.v_proj.weight"),
        f"{attention}/value/bias": (_heads(heads), "self_attn.v_proj.bias"),
        f"{attention}/out/kernel": (_merged(heads), "self_attn.out_proj.weight"),
        f"{attention}/out/bias": (_same, "self_attn.out_proj.bias"),
        "LayerNorm_1/scale": (_same, "layer_norm2.weight"),
        "LayerNorm_1/bias": (_same, "layer_norm2.bias"),
        "MlpBlock_0/Dense_0/kernel": (_transposed, "mlp.fc1.weight"),
        "MlpBlock_0/Dense_0/bias": (_same, "mlp.fc1.bias"),
        "MlpBlock_0/Dense_1/kernel": (_transposed, "mlp.fc2.weight"),
        "MlpBlock_0/Dense_1/bias": (_same, "mlp.fc2.bias"),
    }


def _vision_tower(heads):
    hf = "vision_model."
    joint = f"{hf}head.attention.in_proj_"
    attention = "MAPHead_0/MultiHeadDotProductAttention_0"
    table = {
        "embedding/kernel": (_hwio, f"{hf}embeddings.patch_embedding.weight"),
        "embedding/bias": (_same, f"{hf}embeddings.patch_embedding.bias"),
        "pos_embedding": (_batched, f"{hf}embeddings.position_embedding.weight"),
        "Transformer/encoder_norm/scale": (_same, f"{hf}post_layernorm.weight"),
        "Transformer/encoder_norm/bias": (_same, f"{hf}post_layernorm.bias"),
        "MAPHead_0/probe": (_same, f"{hf}head.probe"),
        f"{attention}/out/kernel": (
            _merged(heads),
            f"{hf}head.attention.out_proj.weight",
        ),
        f"{attention}/out/bias": (_same, f"{hf}head.attention.out_proj.bias"),
        "MAPHead_0/LayerNorm_0/scale": (_same, f"{hf}head.layernorm.weight"),
        "MAPHead_0/LayerNorm_0/bias": (_same, f"{hf}head.layernorm.bias"),
        "MAPHead_0/MlpBlock_0/Dense_0/kernel": (
            _transposed,
            f"{hf}head.mlp.fc1.weight",
        ),
        "MAPHead_0/MlpBlock_0/Dense_0/bias": (_same, f"{hf}head.mlp.fc1.bias"),
        "MAPHead_0/MlpBlock_0/Dense_1/kernel": (
            _transposed,
            f"{hf}head.mlp.fc2.weight",
        ),
        "MAPHead_0/MlpBlock_0/Dense_1/bias": (_same, f"{hf}head.mlp.fc2.bias"),
    }
    for number, part in enumerate(("query", "key", "value")):
        transform = _third(number, _heads(heads))
        table[f"{attention}/{part}/kernel"] = (transform, f"{joint}weight")
        table[f"{attention}/{part}/bias"] = (transform, f"{joint}bias")
    return table


_TEXT_TOWER = {
    "Embed_0/embedding": (_same, "text_model.embeddings.token_embedding.weight"),
    "pos_embedding": (_batched, "text_model.embeddings.position_embedding.weight"),
    "Encoder_0/encoder_norm/scale": (_same, "text_model.final_layer_norm.weight"),
    "Encoder_0/encoder_norm/bias": (_same, "text_model.final_layer_norm.bias"),
    "head/kernel": (_transposed, "text_model.head.weight"),
    "head/bias": (_same, "text_model.head.bias"),
}


def _decoder_block(heads, kv_heads):
    def split(heads):  # [N * H, E] -> [N, E, H]
        return lambda w: w.reshape(heads, -1, w.shape[1]).transpose(0, 2, 1)

    def keys_values(key, value):
        return np.stack([split(kv_heads)(key), split(kv_heads)(value)])

    def gate_and_up(gate, up):
        return np.stack([gate.T, up.T])

    return {
        "attn/q_einsum/w": (split(heads), "self_attn.q_proj.weight"),
        "attn/kv_einsum/w": (
            keys_values,
            "self_attn.k_proj.weight",
            "self_attn.v_proj.weight",
        ),
        "attn/attn_vec_einsum/w": (_merged(heads), "self_attn.o_proj.weight"),
        "mlp/gating_einsum": (
            gate_and_up,
            "mlp.gate_proj.weight",
            "mlp.up_proj.weight",
        ),
        "mlp/linear": (_transposed, "mlp.down_proj.weight"),
    }


_TWO_NORMS = {
    "pre_attention_norm/scale": (_same, "input_layernorm.weight"),
    "pre_ffw_norm/scale": (_same, "post_attention_layernorm.weight"),
}
_FOUR_NORMS = {
    "pre_attention_norm/scale": (_same, "input_layernorm.weight"),
    "post_attention_norm/scale": (_same, "post_attention_layernorm.weight"),
    "pre_ffw_norm/scale": (_same, "pre_feedforward_layernorm.weight"),
    "post_ffw_norm/scale": (_same, "post_feedforward_layernorm.weight"),
}
_QK_NORMS = {
    "attn/query_norm/scale": (_same, "self_attn.q_norm.weight"),
    "attn/key_norm/scale": (_same, "self_attn.k_norm.weight"),
}


def _arrays(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def _rows(state, table, ours="", theirs=""):
    return {
        ours + name: transform(*(state[theirs + source] for source in sources))
        for name, (transform, *sources) in table.items()
    }


def _layers(state, table, ours, theirs, depth):
    layers = [_rows(state, table, ours, theirs.format(n)) for n in range(depth)]
    return {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}
