"""The joint attention of the authors' code in torch, example by example and in float64.

Written from the description in docs/what_differs.md, without anything of hive_jax:
the sequence [text before, image, text after] is laid out, and each dimension of a head is
turned by itself.
"""

import math

import torch


def logits(config, options, params, features, tokens, starts):
    """Logits float64[B, T, V].

    `params` has slash-joined names, `features` is [M, B, P, D], and `starts` has for each
    example the number of text tokens before its image, or None without an image.
    `options` are the connected layers, own_kv and image_rope.
    """
    rows = [
        _example(config, options, params, features[:, number], row, start)
        for number, (row, start) in enumerate(zip(tokens, starts, strict=True))
    ]
    return torch.stack(rows)


def _example(c, options, params, features, tokens, start):
    table = params["llm/embedder/input_embedding"]
    x = table[tokens]
    if c.embed_scale:
        x = x * c.width**0.5
    for number in range(c.depth):
        prefix = "llm/layers/"
        layer = {
            name.removeprefix(prefix): leaf[number]
            for name, leaf in params.items()
            if name.startswith(prefix)
        }
        image = None
        if start is not None and number + 1 in options["layers"]:
            connection = options["layers"].index(number + 1)
            own = {
                name.removeprefix("fusion/"): leaf[connection]
                for name, leaf in params.items()
                if name.startswith("fusion/")
            }
            image = own, features[connection]
        y = _attention(c, options, layer, number, _norm(c, x, layer, "pre_attention"))(
            image, start
        )
        x = x + (_norm(c, y, layer, "post_attention") if c.post_norms else y)
        gate, up = _norm(c, x, layer, "pre_ffw") @ layer["mlp/gating_einsum"]
        act = torch.nn.functional.silu
        if c.activation == "gelu":
            act = torch.nn.GELU("tanh")
        y = (act(gate) * up) @ layer["mlp/linear"]
        x = x + (_norm(c, y, layer, "post_ffw") if c.post_norms else y)
    final = c.norm_offset + params["llm/final_norm/scale"]
    head = table if c.tied_head else params["llm/lm_head/output_embedding"]
    return _rms(x, c.norm_eps) * final @ head.T


def _attention(c, options, layer, number, x):
    sliding = c.local_layers and (number + 1) % (c.local_layers + 1)
    speeds = _speeds(c, sliding)
    query = torch.einsum("TE,NEH->TNH", x, layer["attn/q_einsum/w"])
    query = query + layer.get("attn/q_bias", 0)
    key, value = _keys_values(x, layer, "attn")
    if c.qk_norm:
        query = _norm(c, query, layer, "attn/query")
        key = _norm(c, key, layer, "attn/key")

    def run(image, start):
        nonlocal query, key, value
        length = len(x)
        at = torch.arange(length)
        position, order = at, at
        is_image = torch.zeros(length, dtype=torch.bool)
        keys = key
        if image is not None:
            own, features = image
            patches = len(features)
            side = round(patches**0.5)
            hidden = _norm(c, _project(own, features), layer, "pre_attention")
            image_key, image_value = _keys_values(hidden, layer, "attn")
            if options["own_kv"]:
                image_key, image_value = _keys_values(hidden, own, "joint_attention/kv")
            if c.qk_norm:
                image_key = _norm(c, image_key, layer, "attn/key")
            shift = side if options["image_rope"] else patches
            position = at + shift * (at >= start)
            if options["image_rope"]:
                grid = [(p // side, p % side, side // 2) for p in range(patches)]
            else:
                grid = [(p, p, p) for p in range(patches)]
            image_key = torch.stack(
                [
                    _turn(c, one, [start + axis for axis in axes], speeds)
                    for one, axes in zip(image_key, grid, strict=True)
                ]
            )
        query = torch.stack(
            [_turn(c, q, [p] * 3, speeds) for q, p in zip(query, position)]
        )
        keys = torch.stack(
            [_turn(c, k, [p] * 3, speeds) for k, p in zip(key, position)]
        )
        if image is not None:
            # The whole sequence, and which text token each of its columns is.
            keys = torch.cat([keys[:start], image_key, keys[start:]])
            value = torch.cat([value[:start], image_value, value[start:]])
            order = torch.cat([at[:start], torch.zeros(patches).long(), at[start:]])
            is_image = torch.zeros(length + patches, dtype=torch.bool)
            is_image[start : start + patches] = True
            for name in ("query_norm", "key_norm"):
                scale = 1 + own[f"joint_attention/{name}/scale"]
                if name == "query_norm":
                    query = _rms(query, c.norm_eps) * scale
                else:
                    keys = _rms(keys, c.norm_eps) * scale
        group = c.num_heads // c.num_kv_heads
        keys = keys.repeat_interleave(group, dim=1)
        values = value.repeat_interleave(group, dim=1)
        scale = c.query_scale or c.head_dim**-0.5
        weights = torch.einsum("TNH,SNH->NTS", query, keys) * scale
        if c.attention_softcap:
            cap = c.attention_softcap
            weights = torch.tanh(weights / cap) * cap
        distance = at[:, None] - order[None]
        sees_text = (distance >= 0) & ~is_image
        if sliding:
            sees_text &= distance < c.window
        sees_image = is_image[None] & (at >= (start or 0))[:, None]
        weights = weights.masked_fill(~(sees_text | sees_image), float("-inf"))
        read = torch.einsum("NTS,SNH->TNH", weights.softmax(-1), values)
        return torch.einsum("TNH,NHE->TE", read, layer["attn/attn_vec_einsum/w"])

    return run


def _project(own, x):
    if "projector/norm/scale" in own:
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)
        x = x * own["projector/norm/scale"] + own["projector/norm/bias"]
    x = x @ own["projector/linear_1/kernel"] + own["projector/linear_1/bias"]
    if "projector/linear_2/kernel" not in own:
        return x
    x = torch.nn.functional.gelu(x)
    return x @ own["projector/linear_2/kernel"] + own["projector/linear_2/bias"]


def _keys_values(x, params, name):
    weights = params[f"{name}/kv_einsum/w"]
    biases = params.get(f"{name}/kv_bias", (0, 0))
    return [
        torch.einsum("TE,KEH->TKH", x, w) + bias
        for w, bias in zip(weights, biases, strict=True)
    ]


def _speeds(c, sliding):
    """The angles by which each dimension of a head turns from token to token."""
    base = c.local_rope_base if sliding else c.rope_base
    speeds = []
    for dimension in range(c.head_dim // 2):
        speed = base ** (-2 * dimension / c.head_dim)
        slow = speed if sliding else speed / c.rope_factor
        if c.rope_original_length:  # fast dimensions stay fast
            turns = c.rope_original_length * speed / (2 * math.pi)
            if turns >= 4:
                slow = speed
            elif turns > 1:
                slow += (turns - 1) / 3 * (speed - slow)
        speeds.append(slow)
    return speeds


def _turn(c, heads, axes, speeds):
    """Turns heads [N, H] of one token at (row, column, centre)."""
    half = c.head_dim // 2
    first, second = [], []
    for dimension in range(half):
        axis = dimension % 2 if dimension < 6 * half // 8 else 2
        angle = torch.tensor(float(axes[axis])).double() * speeds[dimension]
        a, b = heads[:, dimension], heads[:, dimension + half]
        first.append(a * torch.cos(angle) - b * torch.sin(angle))
        second.append(b * torch.cos(angle) + a * torch.sin(angle))
    return torch.stack(first + second, dim=-1)


def _rms(x, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def _norm(c, x, layer, name):
    return _rms(x, c.norm_eps) * (c.norm_offset + layer[f"{name}_norm/scale"])
