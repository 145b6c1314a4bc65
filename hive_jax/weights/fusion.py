"""What connects the towers, in PyTorch's names: LLaVA's projector, and HIVE's own."""

from hive_jax.weights.hf_decoder import EINSUM, EINSUM_OUT
from hive_jax.weights.siglip import dense, prefixed
from hive_jax.weights.table import Row


def llava_rows(ours: str, theirs: str) -> list[Row]:
    """The one projector of "self_attention"; ours is a stack of one."""
    rows = []
    for name in ("linear_1", "linear_2"):
        rows += [
            Row(f"{name}/kernel", f"{name}.weight", "O I -> I O", slot=0),
            Row(f"{name}/bias", f"{name}.bias", slot=0),
        ]
    return prefixed(rows, f"{ours}projector/", f"{theirs}multi_modal_projector.")


def hive_rows(ours: str) -> list[Row]:
    """Projectors and cross-attention blocks of "hive" and "cascaded", numbered by
    connection, as `hive_jax/export/torch/modeling_hive.py` names them."""
    projector = [
        Row("norm/scale", "norm.weight"),
        Row("norm/bias", "norm.bias"),
        *dense("linear_1", "linear_1"),
        *dense("linear_2", "linear_2"),
    ]
    attention = [
        Row("norm/scale", "norm.weight"),
        Row("q_einsum/w", "q_proj.weight", EINSUM),
        Row("kv_einsum/w", "k_proj.weight", EINSUM, slot=0),
        Row("kv_einsum/w", "v_proj.weight", EINSUM, slot=1),
        Row("attn_vec_einsum/w", "o_proj.weight", EINSUM_OUT),
        Row("query_norm/scale", "q_norm.weight"),
        Row("key_norm/scale", "k_norm.weight"),
        Row("gate", "gate"),
    ]
    return [
        *prefixed(projector, f"{ours}projector/", "projectors.{}."),
        *prefixed(attention, f"{ours}cross_attention/", "cross_attentions.{}."),
    ]
