"""A part of a run: what is exported."""

import dataclasses

import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.config import RunConfig
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.errors import CheckpointError
from hive_jax.training.stored_run import open_run
from hive_jax.weights import hf_models

# Roots of our parameters in each part; one root alone is taken off.
ROOTS = {
    "encoder": ("img",),
    "two_towers": ("img", "txt", "t", "b"),
    "decoder": ("llm",),
    "vlm": ("img", "llm", "fusion"),
    "hive": ("img", "llm", "fusion"),
}


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A part of a run: our configuration of it, and its parameters by name."""

    part: str
    run: RunConfig
    step: int
    model: object
    arrays: dict[str, np.ndarray]


def choose(workdir: str, part: str) -> Chosen:
    """The part of a run. CheckpointError if the run has no such part."""
    stored = open_run(workdir)
    run, (params, meta) = stored.config, stored.read_params()
    possible = _possible(run, set(params))
    if part not in possible:
        raise CheckpointError(
            f"the run in {workdir} has the branches {', '.join(sorted(params))} and the "
            f"fusion {run.model.fusion!r}, and so no part {part!r}; it can be exported "
            f"as {', '.join(possible)}"
        )
    if part != "encoder":  # which goes out without one
        _require_own_tokenizer(workdir, run, meta)
    if len(ROOTS[part]) == 1:
        params = params[ROOTS[part][0]]
    else:
        params = {root: params[root] for root in ROOTS[part]}
    arrays = {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}
    whole = dataclasses.replace(
        run.model, connections=run.model.resolved_connections(), num_connections=0
    )
    model = {
        "encoder": run.model.encoder,
        "two_towers": (run.model.encoder, run.text_tower),
        "decoder": run.model.decoder,
    }.get(part, whole)
    if not run.data.preprocessing:  # a run of before there was a choice
        data = dataclasses.replace(run.data, preprocessing="hf_bicubic")
        run = dataclasses.replace(run, data=data)
    return Chosen(part, run, meta["step"], model, arrays)


def _possible(run: RunConfig, branches: set[str]) -> list[str]:
    fusions = {"vlm": ("self_attention",), "hive": ("hive", "cascaded")}
    return [
        part
        for part, roots in ROOTS.items()
        if set(roots) <= branches
        and run.model.fusion in fusions.get(part, (run.model.fusion,))
    ]


def _require_own_tokenizer(workdir: str, run: RunConfig, meta: dict) -> None:
    """Raises CheckpointError unless the tokenizer is the one of the training."""
    wanted = meta["inputs"].get("tokenizer")
    if not wanted:
        return
    found = load_tokenizer(run.data.tokenizer).fingerprint
    if found != wanted:
        raise CheckpointError(
            f"{run.data.tokenizer} is another tokenizer ({found}) than the one that "
            f"{workdir} was trained with ({wanted}): put that one there"
        )


def layout_of(chosen: Chosen, image_token_id: int | None) -> hf_models.Layout:
    """The part as transformers has it. CheckpointError if it has no such part."""
    model = chosen.model
    return {
        "encoder": hf_models.encoder,
        "two_towers": lambda towers: hf_models.two_towers(*towers),
        "decoder": hf_models.decoder,
        "vlm": lambda whole: hf_models.vlm(whole, image_token_id),
        "hive": hf_models.hive,
    }[chosen.part](model)


_TABLE = "llm/embedder/input_embedding"


def with_image_token(chosen: Chosen, image_token_id: int) -> tuple[Chosen, int]:
    """A row for the image token where the embedding table has none, and how many were
    added. New rows are copies of the first one: no logit of theirs is ever larger
    than all others."""
    table = chosen.arrays[_TABLE]
    added = max(0, image_token_id + 1 - len(table))
    table = np.concatenate([table, np.repeat(table[:1], added, axis=0)])
    decoder = dataclasses.replace(chosen.model.decoder, vocab_size=len(table))
    model = dataclasses.replace(chosen.model, decoder=decoder)
    arrays = chosen.arrays | {_TABLE: table}
    return dataclasses.replace(chosen, model=model, arrays=arrays), added


def arrays_for(chosen: Chosen, target: str) -> dict[str, np.ndarray]:
    """The parameters as a version of transformers, "v4" or "v5", needs them."""
    if chosen.part == "vlm" and target == "v4":
        return hf_models.fold_embedding_scale(chosen.arrays, chosen.model)
    return chosen.arrays


def rounded(chosen: Chosen, target: str, dtype: np.dtype) -> dict[str, np.ndarray]:
    """The parameters that the files hold, as our model takes them."""
    arrays = arrays_for(chosen, target)
    if dtype != np.float32:
        arrays = {k: a.astype(dtype).astype(np.float32) for k, a in arrays.items()}
    if chosen.part == "vlm" and target == "v4":
        return hf_models.fold_embedding_scale(arrays, chosen.model, back=True)
    return arrays
