"""Loads an exported folder by its stock class and runs it on fixed inputs.

    python check.py FOLDER INPUTS.npz OUTPUTS.npz

Run in a process of its own, in any environment with torch and transformers 4.57 or 5;
nothing of hive_jax is imported. Writes the outputs, and a JSON report as the entry
"report": versions, and the keys that the loader found missing or unexpected.
"""

import json
import sys

import numpy as np
import torch
import transformers
from PIL import Image

NEW_TOKENS = 16


def main(folder: str, inputs_path: str, outputs_path: str) -> None:
    inputs = dict(np.load(inputs_path))
    part = str(inputs["part"])
    model, loading = _load(part, folder)
    with torch.no_grad():
        outputs = _RUN[part](model, inputs)
        outputs |= _processors(part, folder, model, inputs)
    report = {
        "class": type(model).__name__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "missing_keys": sorted(loading["missing_keys"]),
        "unexpected_keys": sorted(loading["unexpected_keys"]),
        "mismatched_keys": sorted(map(str, loading["mismatched_keys"])),
    }
    np.savez(outputs_path, report=json.dumps(report), **outputs)


def _load(part: str, folder: str):
    auto = {
        "encoder": transformers.AutoModel,
        "two_towers": transformers.AutoModel,
        "decoder": transformers.AutoModelForCausalLM,
        "vlm": transformers.AutoModelForImageTextToText,
        "hive": transformers.AutoModelForImageTextToText,
    }[part]
    # Only "hive" brings code, and that is hive_jax's own.
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    # transformers 4 runs Gemma 2 with sdpa by default, which has no soft-cap.
    capped = config.get("text_config", config).get("attn_logit_softcapping")
    attention = {"attn_implementation": "eager"} if capped else {}
    # Shorter weights are compared as they are, in float32 arithmetic. Loaded in their
    # own dtype first, Gemma would round the scale of its embeddings too.
    model, loading = auto.from_pretrained(
        folder,
        dtype=torch.float32,
        output_loading_info=True,
        trust_remote_code=part == "hive",
        **attention,
    )
    return model.eval(), loading


def _encoder(model, inputs: dict) -> dict:
    out = model(_tensor(inputs["pixel_values"]), output_hidden_states=True)
    found = {
        f"depth {depth}": hidden
        for depth, hidden in enumerate(out.hidden_states[1:], start=1)
    }
    found["tokens"] = out.last_hidden_state
    if out.pooler_output is not None:
        found["pooled"] = out.pooler_output
    return _arrays(found)


def _two_towers(model, inputs: dict) -> dict:
    pixels, tokens = _tensor(inputs["pixel_values"]), _tensor(inputs["tokens"])
    out = model(input_ids=tokens, pixel_values=pixels)
    return _arrays(
        {
            "image embeddings": out.image_embeds,
            "text embeddings": out.text_embeds,
            "logits": out.logits_per_image,
        }
    )


def _decoder(model, inputs: dict) -> dict:
    return _arrays({"logits": model(_tensor(inputs["tokens"])).logits})


def _with_image(model, inputs: dict) -> dict:
    """Logits of the text, and what is generated after the prompt, with a cache."""
    pixels = _tensor(inputs["pixel_values"])
    image = _tensor(inputs["image_tokens"])
    tokens = torch.cat([image, _tensor(inputs["tokens"])], dim=1)
    logits = model(input_ids=tokens, pixel_values=pixels).logits
    prompt = torch.cat([image, _tensor(inputs["prompt"])], dim=1)
    model.generation_config.eos_token_id = None
    generated = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pixel_values=pixels,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
    )
    logits = logits[:, image.shape[1] :]
    return _arrays({"logits": logits, "greedy": generated[:, -NEW_TOKENS:]})


_RUN = {
    "encoder": _encoder,
    "two_towers": _two_towers,
    "decoder": _decoder,
    "vlm": _with_image,
    "hive": _with_image,
}


def _processors(part: str, folder: str, model, inputs: dict) -> dict:
    """What the folder's own image processor, tokenizer and template make of files; the
    model takes all of it."""
    found, prepared = {}, {}
    image = Image.fromarray(inputs["image_file"])
    if part != "decoder":
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        prepared = dict(processor(image, return_tensors="pt"))
        found["image processor"] = prepared["pixel_values"].numpy()
    text = str(inputs["text"])
    if text and part in ("two_towers", "decoder", "hive"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=part == "hive"
        )
        tokens = tokenizer(text, return_tensors="pt")
        found["tokenizer"] = tokens["input_ids"][0].numpy()
        prepared |= dict(tokens)
    if text and part == "vlm":
        processor = transformers.AutoProcessor.from_pretrained(folder)
        question = {"type": "text", "text": text}
        for name, content in {
            "chat template": [{"type": "image"}, question],
            "chat template, one string": f"<image>\n{text}",
        }.items():
            prompt = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=False,
            )
            prepared = dict(processor(images=image, text=prompt, return_tensors="pt"))
            found[name] = prepared["input_ids"][0].numpy()
    if text and part in ("decoder", "vlm", "hive"):
        model.generate(**prepared, max_new_tokens=1)
    return found


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _arrays(tensors: dict) -> dict:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
