"""JSON values of the wrong type, in every key of every file that weights come with."""

import copy
import json
import os

import pytest
from helpers.tiny_weights import GEMMA3, IMAGE, TEXT, hive_config, write_folder

from hive_jax.data.stored_text_preprocessing import stored_preprocessing
from hive_jax.data.tokenizer import copy_tokenizer
from hive_jax.errors import CheckpointError, HiveError
from hive_jax.export.verify import verify_folder
from hive_jax.weights import hf_image_processor, hf_models, load_decoder, load_encoder
from hive_jax.weights.sources import open_encoder, open_hive

WRONG = (5, "x", None, [[1]], {}, 0)
PROCESSOR = hf_image_processor.image_processor(8, "hf_bicubic", "")
TOKENIZER = {
    "tokenizer_class": "GemmaTokenizer",
    "pad_token": {"content": "<pad>"},
    "eos_token": "<eos>",
    "padding_side": "right",
    "do_lower_case": True,
    "split_special_tokens": False,
}
REPORT = {
    "component": "encoder",
    "preprocessing": "hf_bicubic",
    "target": "v5",
    "tensors": {},
    "files": {},
}


def places(tree, above=()):
    """The path of every value in nested JSON; of lists, the first two."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:2])
    for key, value in items:
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from places(value, (*above, key))


def changed(tree, path, value):
    tree = copy.deepcopy(tree)
    group = tree
    for key in path[:-1]:
        group = group[key]
    group[path[-1]] = value
    return tree


@pytest.mark.parametrize(
    ("name", "layout", "content", "load"),
    [
        ("preprocessor_config.json", "encoder", PROCESSOR, load_encoder),
        (
            "processor_config.json",
            "encoder",
            {"image_processor": PROCESSOR},
            load_encoder,
        ),
        ("hive_export.json", "encoder", REPORT, load_encoder),
        ("hive_export.json", "encoder", REPORT | {"component": "x"}, verify_folder),
        (
            "tokenizer_config.json",
            "two",
            TOKENIZER,
            lambda f: stored_preprocessing(f, 8),
        ),
        ("config.json", "encoder", None, load_encoder),
        ("config.json", "decoder", None, load_decoder),
        ("config.json", "hive", None, open_hive),
        ("model.safetensors.index.json", "shards", None, load_encoder),
    ],
)
def test_wrong_types_are_errors_of_the_package(tmp_path, name, layout, content, load):
    options = {"max_shard_bytes": 3000} if layout == "shards" else {}
    layouts = {
        "encoder": lambda: hf_models.encoder(IMAGE),
        "shards": lambda: hf_models.encoder(IMAGE),
        "two": lambda: hf_models.two_towers(IMAGE, TEXT),
        "decoder": lambda: hf_models.decoder(GEMMA3),
        "vlm": lambda: hf_models.vlm(hive_config("self_attention"), 5),
        "hive": lambda: hf_models.hive(hive_config("hive")),
    }
    folder = tmp_path / "model"
    if layout == "two":
        copy_tokenizer("builtin:tabletop", folder)
    write_folder(folder, layouts[layout](), **options)
    file = folder / name
    if content is None:
        content = json.loads(file.read_text())
    refused = 0
    for path in places(content):
        for value in WRONG:
            file.write_text(json.dumps(changed(content, path, value)))
            try:
                load(str(folder))
            except HiveError:
                refused += 1
    assert refused
    for value in WRONG:
        if not isinstance(value, dict):
            file.write_text(json.dumps(value))
            with pytest.raises(CheckpointError, match=f"{name}: expected an object"):
                load(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "preprocessor_config.json",
            {"image_processor_type": 5},
            "'image_processor_ty",
        ),
        ("processor_config.json", {"image_processor": [1]}, "'image_processor' is [1]"),
        ("hive_export.json", REPORT | {"preprocessing": [5]}, "preprocessing is [5]"),
    ],
)
def test_the_key_is_named(tmp_path, name, content, message):
    folder = write_folder(tmp_path, hf_models.encoder(IMAGE))
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        load_encoder(folder)
    assert message in str(caught.value) and name in str(caught.value)


def test_pipes_are_not_waited_for(tmp_path):
    for name in ("a.npz", "a", "folder/config.json"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    for name in ("a.npz", "a", "folder"):
        with pytest.raises(CheckpointError, match="is a pipe, socket or device"):
            open_encoder(str(tmp_path / name))
