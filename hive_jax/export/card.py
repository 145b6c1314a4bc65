"""The README.md of an export, from the run's own data."""

from pathlib import Path

from hive_jax.config import RunConfig
from hive_jax.data.sources.registry import to_text
from hive_jax.errors import CheckpointError
from hive_jax.io import read_json

_LOADING = {
    "encoder": """\
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained(FOLDER)
model = AutoModel.from_pretrained(FOLDER)
out = model(**processor(images=image, return_tensors="pt"), output_hidden_states=True)
out.last_hidden_state""",
    "two_towers": """\
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained(FOLDER)
pixels = AutoImageProcessor.from_pretrained(FOLDER)(images=image, return_tensors="pt")
model.get_image_features(**pixels)""",
    "decoder": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
model.generate(**tokenizer("a", return_tensors="pt"), max_new_tokens=32)""",
    "vlm": """\
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(FOLDER)
model = AutoModelForImageTextToText.from_pretrained(FOLDER)
messages = [{"role": "user", "content": [{"type": "image"}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=image, text=prompt, return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=64)
processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)""",
    "hive": """\
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

# The folder's own modeling_hive.py: torch, and stock SigLIP and Gemma parts.
model = AutoModelForImageTextToText.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
pixels = AutoImageProcessor.from_pretrained(FOLDER)(images=image, return_tensors="pt")
out = model.generate(**tokenizer("", return_tensors="pt"), **pixels, max_new_tokens=64)
tokenizer.decode(out[0], skip_special_tokens=True)""",
}
_WHAT = {
    "encoder": "A SigLIP image encoder",
    "two_towers": "A SigLIP image and text encoder",
    "decoder": "The language model",
    "vlm": "A LLaVA-style vision-language model",
    "hive": "The vision-language model with cross-attention",
}


def model_card(
    part: str,
    config: RunConfig,
    step: int,
    certificate: dict,
    result: dict | None,
    name: str,
) -> str:
    """Markdown with what the model is, how to load it, and how it was checked.

    Args:
      step: of the checkpoint.
      certificate: the content of hive_export.json.
      result: the run's result.json, if it has finished.
      name: of the folder.
    """
    what = (
        f"{_WHAT[part]} from stage `{config.name}` of HIVE (hierarchical pre-training "
        "of vision encoders with large language models, "
        "[arXiv 2604.00086](https://arxiv.org/abs/2604.00086)), exported by hive_jax."
    )
    sections = [
        _front_matter(part),
        f"# {name}",
        what,
        _loading(part),
        _origin(part, config, step, result),
        *_notes(part, config, certificate),
        _check(certificate),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(part: str) -> str:
    task = {
        "decoder": "text-generation",
        "vlm": "image-text-to-text",
        "hive": "image-text-to-text",
    }.get(part, "image-feature-extraction")
    return f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags:\n- hive\n---"


def _loading(part: str) -> str:
    return f"```python\n{_LOADING[part].replace('FOLDER', repr('.'))}\n```"


def _origin(part: str, config: RunConfig, step: int, result: dict | None) -> str:
    rows = {
        "step": f"{step:,} of {config.total_steps:,}",
        "images an optimizer step": f"{config.batch_size:,}",
        "data": to_text(config.data.source),
        "started from": config.init
        or config.previous
        or ", ".join(filter(None, (config.init_encoder, config.init_decoder))),
    }
    if config.objective == "caption":
        rows["fusion"] = config.model.fusion
        pairs = config.model.resolved_connections()
        rows["connections (encoder depth, decoder layer)"] = ", ".join(map(str, pairs))
    for key, value in (result or {}).get("validation", {}).items():
        if "/" not in key and part != "decoder":
            rows[f"validation {key.replace('_', ' ')}"] = f"{value:.4f}"
    lines = [f"| {key} | {value} |" for key, value in rows.items() if value]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *lines])


def _notes(part: str, config: RunConfig, certificate: dict) -> list[str]:
    notes = []
    if part in ("encoder", "two_towers", "vlm", "hive"):
        size = config.model.encoder.image_size
        notes.append(
            f"Images are {size} x {size} pixels, prepared as "
            f"`{config.data.preprocessing}` does: `preprocessor_config.json` says how."
        )
        if certificate["image_processor"] != config.data.preprocessing:
            notes[-1] = (
                f"Images are {size} x {size} pixels. In training `tf.image.resize` made "
                "them, bilinear without antialiasing and cut to whole numbers, as "
                "big_vision does. No image processor of transformers does that: "
                "`preprocessor_config.json` names its nearest, bilinear with "
                "antialiasing, which is softer where an image shrinks."
            )
    trains_tokens = part != "decoder" and config.objective == "caption"
    if trains_tokens and config.model.encoder.map_head:
        notes.append(
            "The pooling head (`pooler_output`) is the one that the encoder came with: "
            "HIVE trains the layers below it, and not the head. Use the tokens."
        )
    if part == "two_towers":
        notes.append(
            f"Texts are padded with `<pad>` to {config.text_tower.num_tokens} tokens."
        )
    if part in ("decoder", "vlm") and config.model.decoder.attention_softcap:
        notes.append(
            "The decoder's attention has a soft-cap, which only "
            "`attn_implementation='eager'` computes: give it to `from_pretrained`."
        )
    if part == "vlm" and config.model.decoder.final_softcap:
        notes.append(
            "LLaVA's class leaves out the decoder's final soft-cap: the likeliest token "
            "is the same, probabilities are sharper."
        )
    if part == "vlm":
        token = certificate["image_token"]
        notes.append(
            f"The image token is `{token['content']}`, id {token['id']}; "
            f"{token['rows_added']} rows were added to the embedding table for it."
        )
    if part == "vlm" and not config.model.decoder.qk_norm:
        notes.append(
            f"Written for transformers {certificate['target'][1:]}: version 4 "
            "multiplies the image's tokens by the square root of the width where the "
            "decoder is a Gemma 1 or 2, version 5 does not."
        )
    return [f"- {note}" for note in notes]


def _check(certificate: dict) -> str:
    check = certificate["check"]
    if not check["run"]:
        return f"## Check\n\n**Not run**: {check['reason']}."
    outputs = dict(check["max_abs_difference"])
    outputs.pop("image processor", None)
    largest = max(outputs.items(), key=lambda item: item[1])
    worst = f"{largest[1]:.1e} ({largest[0]})"
    return (
        f"## Check\n\nLoaded by `{check['class']}` of transformers "
        f"{check['transformers']} with no missing and no unexpected keys, and compared "
        f"with hive_jax on fixed inputs: the largest difference is {worst}. All figures "
        "are in `hive_export.json`."
    )


def read_result(workdir: Path) -> dict | None:
    """The result.json of a run, if there is one."""
    path = workdir / "result.json"
    return read_json(path, error=CheckpointError) if path.is_file() else None
