"""Runs an exported folder on example inputs, with torch and transformers.

    python run_exported.py FOLDER INPUTS.npz OUTPUTS.npz

Meant for a process of its own, in any environment with torch and transformers 4.57 or
5: nothing of hive_jax is imported. Knows no component: the entry "request" of the
inputs, a JSON object, says what to load and which outputs to return. OUTPUTS.npz holds
these and the entry "report", JSON with versions and missing or unexpected keys.
"""

import functools
import io
import json
import operator
import sys

import numpy as np
import torch
import transformers
from PIL import Image


def main(folder: str, inputs_path: str, outputs_path: str) -> None:
    """Runs the folder.

    Args:
      folder: written by hive_jax's export.
      inputs_path: .npz as hive_jax/export/verify.py writes it.
      outputs_path: .npz to write.
    """
    inputs = dict(np.load(inputs_path))
    request = json.loads(str(inputs.pop("request")))
    model, loading = load(folder, request)
    # Outputs alone: no memory for gradients.
    with torch.no_grad():
        outputs = forward(model, inputs, request)
        if "prompt_ids" in inputs:
            outputs["greedy"] = generate(model, inputs, request["new_tokens"])
        outputs |= run_processors(folder, model, inputs, request)
    report = {
        "class": type(model).__name__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "missing_keys": sorted(loading["missing_keys"]),
        "unexpected_keys": sorted(loading["unexpected_keys"]),
        "mismatched_keys": sorted(map(str, loading["mismatched_keys"])),
    }
    arrays = {name: tensor.numpy() for name, tensor in outputs.items()}
    np.savez(outputs_path, report=json.dumps(report), **arrays)


def load(folder: str, request: dict) -> tuple[torch.nn.Module, dict]:
    """Loads a model in float32 and eval mode.

    Args:
      folder: the exported folder.
      request: its "auto_class" is the transformers class to load with, "remote_code"
        whether to trust the folder's modeling code.

    Returns:
      The model, and the loading report of transformers (missing and unexpected keys).
    """
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    # transformers 4 runs Gemma 2 with sdpa by default, which has no soft-cap.
    # A decoder alone has no text_config around its own configuration.
    capped = config.get("text_config", config).get("attn_logit_softcapping")
    attention = {"attn_implementation": "eager"} if capped else {}
    # Shorter weights are compared as they are, in float32 arithmetic. Loaded in their
    # own dtype first, Gemma would round the scale of its embeddings too.
    model, loading = getattr(transformers, request["auto_class"]).from_pretrained(
        folder,
        dtype=torch.float32,
        output_loading_info=True,
        trust_remote_code=request["remote_code"],
        **attention,
    )
    return model.eval(), loading


def forward(model, inputs: dict, request: dict) -> dict[str, torch.Tensor]:
    """Runs one forward pass and returns the requested outputs.

    Args:
      model: as from `load`.
      inputs: arrays by name; input_ids and pixel_values are passed if present.
      request: its "options" are further keyword arguments of the model, "outputs" maps
        the name of each output to its keys in the model output.
    """
    names = ("input_ids", "pixel_values")
    # Encoders take no ids, decoders no pixels.
    arrays = {name: to_tensor(inputs[name]) for name in names if name in inputs}
    out = model(**arrays, **request["options"])
    return {
        # ["hidden_states", 3] is out["hidden_states"][3].
        name: functools.reduce(operator.getitem, keys, out)
        for name, keys in request["outputs"].items()
    }


def generate(model, inputs: dict, new_tokens: int) -> torch.Tensor:
    """Decodes greedily with a KV cache and returns the new tokens.

    Args:
      model: as from `load`.
      inputs: prompt_ids, int64[B, T], and pixel_values, float32[B, 3, size, size].
      new_tokens: number of tokens to generate, past any end-of-sequence token.

    Returns:
      int64[B, new_tokens].
    """
    prompt = to_tensor(inputs["prompt_ids"])
    model.generation_config.eos_token_id = None  # or answers end early
    generated = model.generate(
        input_ids=prompt,
        # Explicit: transformers would take tokens with the padding's id for padding.
        attention_mask=torch.ones_like(prompt),
        pixel_values=to_tensor(inputs["pixel_values"]),
        max_new_tokens=new_tokens,
        do_sample=False,
    )
    return generated[:, -new_tokens:]


def run_processors(
    folder: str, model, inputs: dict, request: dict
) -> dict[str, torch.Tensor]:
    """Runs the folder's image processor, tokenizer and chat template.

    Args:
      folder: that holds them.
      model: generates one token, to see that it takes what they return.
      inputs: arrays, with image files where there is an image processor: "image_file"
        and "image_file, KIND", the bytes of each.
      request: names the processors.
    """
    outputs, batch = {}, {}
    if "image processor" in request["processors"]:
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        for name in (name for name in inputs if name.startswith("image_file")):
            one = Image.open(io.BytesIO(inputs[name].tobytes()))
            output = name.replace("image_file", "image processor")
            outputs[output] = processor(one, return_tensors="pt")["pixel_values"]
        image = Image.open(io.BytesIO(inputs["image_file"].tobytes()))
        batch = dict(processor(image, return_tensors="pt"))
    if "tokenizer" in request["processors"]:
        options = request["tokenizer_options"]
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=request["remote_code"]
        )
        for name, text in request["texts"].items():
            tokens = dict(tokenizer(text, return_tensors="pt", **options))
            outputs[name] = tokens["input_ids"][0]
        batch |= tokens
    if "conversation" in request["processors"]:
        messages = [{"role": "user", "content": request["text"]}]
        outputs["conversation"] = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"][0]
    if "chat template" in request["processors"]:
        processor = transformers.AutoProcessor.from_pretrained(folder)
        text = {"type": "text", "text": request["text"]}
        for name, content in {
            "chat template": [{"type": "image"}, text],
            "chat template, one string": f"<image>\n{request['text']}",
        }.items():
            prompt = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=False,
            )
            batch = dict(processor(images=image, text=prompt, return_tensors="pt"))
            outputs[name] = batch["input_ids"][0]
    if request["generates"]:
        model.generate(**batch, max_new_tokens=1)
    return outputs


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Returns the array as a tensor of the same dtype."""
    return torch.from_numpy(np.ascontiguousarray(array))


if __name__ == "__main__":
    main(*sys.argv[1:])
