"""The README.md of an export."""

import dataclasses
import html
import os
import re
from collections.abc import Mapping, Sequence

from hive_jax.config import RunConfig, Source
from hive_jax.console import printable
from hive_jax.data.sources.source_text import parse, to_text
from hive_jax.export.component_base import Component


def model_card(
    component: Component,
    run: RunConfig,
    step: int,
    verification: Mapping,
    name: str,
    result: Mapping | None = None,
) -> str:
    """Returns Markdown about the model, how to load it, and its verification.

    Args:
      component: that is exported.
      run: config of the run it comes from.
      step: of the checkpoint.
      verification: as from `verify_export`.
      name: title of the card.
      result: content of the run's result.json; None if it has not finished.
    """
    summary = (
        f"{component.description} from stage {_text(run.name)} of HIVE (hierarchical "
        "pre-training of vision encoders with large language models, "
        "[arXiv 2604.00086](https://arxiv.org/abs/2604.00086)), exported by hive_jax."
    )
    # YAML that the Hugging Face Hub reads.
    front_matter = (
        "---\nlibrary_name: transformers\n"
        f"pipeline_tag: {component.pipeline_tag}\ntags:\n- hive\n---"
    )
    sections = [
        front_matter,
        f"# {_text(name)}",
        summary,
        f"```python\n{component.loading_snippet}\n```",
        _training(component, run, step, result),
        *(
            f"- {note}"
            for note in (*component.card_notes(run), *_chat_notes(component))
        ),
        _check(verification),
    ]
    return "\n\n".join(sections) + "\n"


def _training(
    component: Component, run: RunConfig, step: int, result: Mapping | None
) -> str:
    """Returns a table of the training settings and the final validation."""
    rows = {
        "step": f"{step:,} of {run.total_steps:,}",
        "images an optimizer step": f"{run.batch_size:,}",
        "data": to_text(_public_source(run.data.source)),
        "started from": _public_path(run.init)
        or run.previous
        or ", ".join(
            filter(None, map(_public_path, (run.init_encoder, run.init_decoder)))
        ),
    }
    if run.objective == "caption":
        rows["fusion"] = run.model.fusion
        pairs = run.model.resolved_connections()
        rows["connections (encoder depth, decoder layer)"] = ", ".join(map(str, pairs))
    if component.encoder_config is not None and result:
        for key, value in result.get("validation", {}).items():
            # Without the losses by tag, which depend on the dataset.
            if "/" not in key:
                rows[f"validation {key.replace('_', ' ')}"] = f"{value:.4f}"
    lines = [
        f"| {_text(key)} | {_text(value)} |" for key, value in rows.items() if value
    ]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *lines])


def _chat_notes(component: Component) -> list[str]:
    if not component.chat:
        return []
    end = component.tokenizer.chat_format.end_token
    note = (
        "It was trained on conversations: write prompts by `apply_chat_template`, with "
        f"`add_generation_prompt=True`. Answers end with `{end}`."
    )
    return [note]


def _text(value: object) -> str:
    """Returns Markdown, in one line and without HTML, that renders as the value."""
    line = " ".join(printable(value).split())
    return re.sub(r"([\\`*\[\]|~#])", r"\\\1", html.escape(line, quote=False))


def _public_source(source: str | Sequence[Source]) -> tuple[Source, ...]:
    """Returns the sources without the folders of their files."""
    return tuple(
        dataclasses.replace(
            one,
            path=_public_path(one.path),
            options=tuple((name, _public_path(value)) for name, value in one.options),
        )
        for one in (parse(source) if isinstance(source, str) else source)
    )


def _public_path(path: str) -> str:
    """Returns the last component of a path outside of the working folder.

    The others are of the author's disk: user names, projects, mounts.
    """
    outside = path.startswith(("/", "~", "..")) or "/.." in path
    return os.path.basename(path.rstrip("/")) if outside else path


def _check(verification: Mapping) -> str:
    if not verification["run"]:
        return f"## Check\n\n**Not run**: {verification['reason']}."
    differences = {
        name: difference
        for name, difference in verification["max_abs_difference"].items()
        if not name.startswith("image processor")
    }
    name, largest = max(differences.items(), key=lambda item: item[1])
    return (
        f"## Check\n\nLoaded by `{verification['class']}` of transformers "
        f"{verification['transformers']} with no missing and no unexpected keys, and "
        "compared with hive_jax on fixed inputs: the largest difference is "
        f"{largest:.1e} ({name}). All figures are in `hive_export.json`."
        + "".join(
            f"\n\n{_deviating(name)} than in training: {known['reason']}."
            for name, known in verification["known_deviations"].items()
        )
    )


def _deviating(output: str) -> str:
    """Returns "image processor, grey" -> "Grey images get other pixels"."""
    processor, _, kind = output.partition(", ")
    if processor == "image processor":
        return f"{kind.capitalize()} images get other pixels"
    return f"{kind.capitalize()} gets other tokens"
