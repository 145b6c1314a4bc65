"""The joint attention of the authors' code in torch, example by example and in float64.

Written from the description in docs/paper_differences.md, without anything of hive_jax:
the sequence [text before, image, text after] is laid out, and each dimension of a head is
turned by itself.
"""

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
    return _rms(x, c.norm_eps) * final @ table.T


def _attention(c, options, layer, number, x):
    sliding = c.local_layers and (number + 1) % (c.local_layers + 1)
    base = c.local_rope_base if sliding else c.rope_base
    factor = 1.0 if sliding else c.rope_factor
    wk, wv = layer["attn/kv_einsum/w"]
    query = torch.einsum("TE,NEH->TNH", x, layer["attn/q_einsum/w"])
    key, value = (torch.einsum("TE,KEH->TKH", x, w) for w in (wk, wv))
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
            weights = (wk, wv)
            if options["own_kv"]:
                weights = own["joint_attention/kv/kv_einsum/w"]
            image_key, image_value = (
                torch.einsum("PE,KEH->PKH", hidden, w) for w in weights
            )
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
                    _turn(c, one, [start + axis for axis in axes], base, factor)
                    for one, axes in zip(image_key, grid, strict=True)
                ]
            )
        query = torch.stack(
            [_turn(c, q, [p] * 3, base, factor) for q, p in zip(query, position)]
        )
        keys = torch.stack(
            [_turn(c, k, [p] * 3, base, factor) for k, p in zip(key, position)]
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


def _turn(c, heads, axes, base, factor):
    """Turns heads [N, H] of one token at (row, column, centre)."""
    half = c.head_dim // 2
    first, second = [], []
    for dimension in range(half):
        axis = dimension % 2 if dimension < 6 * half // 8 else 2
        angle = torch.tensor(float(axes[axis])).double() / factor
        angle = angle / base ** (dimension / half)
        a, b = heads[:, dimension], heads[:, dimension + half]
        first.append(a * torch.cos(angle) - b * torch.sin(angle))
        second.append(b * torch.cos(angle) + a * torch.sin(angle))
    return torch.stack(first + second, dim=-1)


def _rms(x, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def _norm(c, x, layer, name):
    return _rms(x, c.norm_eps) * (c.norm_offset + layer[f"{name}_norm/scale"])
