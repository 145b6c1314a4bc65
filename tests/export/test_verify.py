"""Exports are verified: stock classes compute the same from them."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
from helpers.exported_runs import report_of, run_config
from helpers.random_runs import save_random

from hive_jax.errors import CheckpointError
from hive_jax.export import verify
from hive_jax.export.components import COMPONENTS
from hive_jax.export.export import export, load_component
from hive_jax.export.verify import verify_folder
from hive_jax.weights.safetensors import DTYPES

HAS_TORCH = importlib.util.find_spec("torch") is not None


COMMON = {"README.md", "config.json", "hive_export.json", "model.safetensors"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
IMAGES, GENERATION = {"preprocessor_config.json"}, {"generation_config.json"}
FILES = {
    "encoder": COMMON | IMAGES,
    "two_towers": COMMON | IMAGES | TOKENIZER,
    "decoder": COMMON | TOKENIZER | GENERATION,
    "vlm": COMMON
    | IMAGES
    | TOKENIZER
    | GENERATION
    | {"processor_config.json", "chat_template.jinja"},
    "hive": COMMON
    | IMAGES
    | TOKENIZER
    | GENERATION
    | {
        "configuration_hive.py",
        "connections_hive.py",
        "joint_attention_hive.py",
        "modeling_hive.py",
    },
}


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
@pytest.mark.parametrize(
    ("kind", "component", "dtype", "stock"),
    [
        ("hive", "encoder", "bfloat16", "SiglipVisionModel"),
        ("contrastive", "two_towers", "float32", "SiglipModel"),
        ("hive", "decoder", "float16", "Gemma3ForCausalLM"),
        ("cascaded", "hive", "float32", "HiveForConditionalGeneration"),
        ("cascaded penultimate", "hive", "float32", "HiveForConditionalGeneration"),
        ("joint penultimate", "hive", "float32", "HiveForConditionalGeneration"),
        (
            "self_attention penultimate",
            "vlm",
            "float32",
            "LlavaForConditionalGeneration",
        ),
        ("joint own", "hive", "float32", "HiveForConditionalGeneration"),
        ("hive of llama", "decoder", "bfloat16", "LlamaForCausalLM"),
        ("hive of qwen2", "hive", "bfloat16", "HiveForConditionalGeneration"),
        (
            "self_attention of llama",
            "vlm",
            "bfloat16",
            "LlavaForConditionalGeneration",
        ),
    ],
)
def test_stock_classes_compute_the_same(runs, tmp_path, kind, component, dtype, stock):
    """By the export's own verification, which raises if anything differs."""
    out = tmp_path / "export"
    report = export(runs(kind), component, str(out), dtype=dtype)
    assert {path.name for path in out.iterdir()} == FILES[component]
    assert report == report_of(out)
    assert report["component"] == component and report["dtype"] == dtype
    assert report["run"]["step"] == 7
    verification = report["verification"]
    assert verification["run"] and verification["class"] == stock
    assert verification["missing_keys"] == verification["unexpected_keys"] == []
    kinds = ("", ", grey", ", palette", ", rotated", ", transparent")
    has_images = component != "decoder"
    images = {f"image processor{kind}" for kind in kinds if has_images}
    outputs = {
        "encoder": {"depth 1", "depth 2", "depth 3", "tokens", "pooled"},
        "two_towers": {"image embeddings", "text embeddings", "logits"},
    }.get(component, {"logits"})
    assert set(verification["max_abs_difference"]) == outputs | images
    assert all(verification["max_abs_difference"][name] == 0 for name in images)
    known = verification["known_deviations"]
    has_text_tower, card = component == "two_towers", (out / "README.md").read_text()
    wide, empty = "image processor, 16-bit", "tokenizer, empty text"
    assert list(known) == [wide] * has_images + [empty] * has_text_tower
    assert not has_images or known[wide]["max_abs_difference"] > 1
    assert ("16-bit images get other pixels" in card) == has_images
    assert ("Empty text gets other tokens" in card) == has_text_tower
    tokens = {
        "encoder": [],
        "vlm": ["chat template", "chat template, one string", "greedy"],
        "hive": ["greedy", "tokenizer"],
    }.get(component, ["tokenizer"])
    assert verification["equal"] == tokens
    if "greedy" in tokens:
        assert np.shape(verification["greedy_tokens"]) == (4, 16)
        assert verify.summary(verification).count("greedy: 16 tokens, ") == 4
    assert stock in (out / "README.md").read_text()


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
@pytest.mark.parametrize(
    ("name", "kind", "component"),
    [
        ("bv_bilinear", "hive", "encoder"),
        ("hf_bicubic_pad", "self_attention", "vlm"),
    ],
)
def test_card_names_preprocessing_that_transformers_lacks(
    tmp_path, name, kind, component
):
    workdir, out = str(tmp_path / "run"), str(tmp_path / "out")
    config = run_config(kind)
    data = dataclasses.replace(config.data, preprocessing=name)
    save_random(dataclasses.replace(config, data=data), workdir)
    report = export(workdir, component, out)
    assert report["verification"]["run"] and report["preprocessing"] == name
    card = (tmp_path / "out/README.md").read_text()
    exact = name == "hf_bicubic_pad"
    assert report["image_processor"] == (name if exact else "hf_bilinear")
    assert ("No image processor of transformers" in card) != exact
    assert COMPONENTS[component].open(out).preprocessing == name


@pytest.mark.parametrize("target", ["v4", "v5"])
def test_verified_parameters_are_those_in_the_files(runs, tmp_path, target):
    """Rounded after the scale is folded in, not before."""
    workdir, out = runs("self_attention of gemma1"), tmp_path / "out"
    options = {"dtype": "bfloat16", "target": target}
    report = export(workdir, "vlm", str(out), verify=False, **options)
    stored = COMPONENTS["vlm"].from_folder(out, report)
    component, _, _ = load_component(workdir, "vlm", target)
    verified = component.for_transformers().rounded(DTYPES["bfloat16"])
    assert verified.config == stored.config
    assert verified.image_token_id == stored.image_token_id == 512
    assert set(verified.arrays) == set(stored.arrays)
    for name, array in stored.arrays.items():
        np.testing.assert_array_equal(verified.arrays[name], array)


def test_without_torch_it_is_not_verified(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "export"
    verification = export(runs("hive"), "encoder", str(out))["verification"]
    assert not verification["run"] and "torch" in verification["reason"]
    assert "**Not run**" in (out / "README.md").read_text()


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
def test_a_wrong_export_is_refused(runs, tmp_path, monkeypatch):
    """When it is written, and when it is verified after a change."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(verify, "TOLERANCE", 1e-12)
        with pytest.raises(CheckpointError, match="depth 1: off by .*; limit"):
            export(runs("hive"), "encoder", str(out))
        assert not list(tmp_path.iterdir())
    export(runs("hive"), "encoder", str(out), verify=False)
    assert verify_folder(str(out))["run"]
    (out / "README.md").write_text("a card of one's own")
    config = json.loads((out / "config.json").read_text())
    config["image_size"] = 29
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json changed or missing since"):
        verify_folder(str(out))


def test_changed_code_is_not_run(runs, tmp_path):
    out = tmp_path / "out"
    export(runs("hive"), "hive", str(out), verify=False)
    with (out / "modeling_hive.py").open("a") as file:
        file.write(f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(CheckpointError, match=r"modeling_hive\.py changed"):
        verify_folder(str(out))
    assert not (tmp_path / "ran").exists()
