"""A part of a run as files for others: checked by the stock classes, whole or not at
all."""

import dataclasses
import importlib.util
import json
import shutil

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.random_runs import save_random

from hive_jax import weights
from hive_jax.config import DataConfig, RunConfig
from hive_jax.data.tokenizer import copy_tokenizer, load_tokenizer
from hive_jax.errors import CheckpointError, ConfigError, MissingInputError, OutputError
from hive_jax.export import certificate
from hive_jax.export.chosen import choose, rounded, with_image_token
from hive_jax.export.exporting import FORMATS, export
from hive_jax.export.recheck import recheck
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.hive import HiveConfig
from hive_jax.models.siglip import SiglipConfig, TextTowerConfig
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.state import TrainState
from hive_jax.weights import hf_models, sources
from hive_jax.weights.safetensors import DTYPES, tensor_hash

HAS_TORCH = importlib.util.find_spec("torch") is not None

ENCODER = SiglipConfig(32, 3, 48, 2, patch_size=8, image_size=28)
GEMMA3 = DecoderConfig(
    *(512, 32, 3, 48, 4, 2, 16), post_norms=True, qk_norm=True, local_layers=2, window=6
)
GEMMA1 = DecoderConfig(512, 32, 3, 48, 4, 2, 16)
TEXT = TextTowerConfig(512, 8, 32, 2, 48, 2, out_dim=32)
DATA = DataConfig(tokenizer="builtin:tabletop", preprocessing="hf_bicubic")


def run_config(kind: str) -> RunConfig:
    if kind == "contrastive":
        model = HiveConfig(ENCODER, GEMMA3)
        return RunConfig(
            objective="contrastive",
            model=model,
            text_tower=TEXT,
            data=dataclasses.replace(DATA, num_tokens=8),
        )
    decoder = GEMMA1 if kind == "self_attention_gemma1" else GEMMA3
    fusion = kind.removesuffix("_gemma1")
    connections = ((2, 1),) if fusion == "self_attention" else ((1, 1), (3, 2))
    return RunConfig(model=HiveConfig(ENCODER, decoder, fusion, connections), data=DATA)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """kind -> workdir with random weights, nowhere near zero."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}

    def make(kind: str) -> str:
        if kind not in made:
            made[kind] = str(folder / kind)
            save_random(run_config(kind), made[kind])
        return made[kind]

    return make


def certificate_of(folder) -> dict:
    return json.loads((folder / "hive_export.json").read_text())


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
    | {"configuration_hive.py", "modeling_hive.py"},
}


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
@pytest.mark.parametrize(
    ("kind", "part", "dtype", "stock"),
    [
        ("hive", "encoder", "bfloat16", "SiglipVisionModel"),
        ("contrastive", "two_towers", "float32", "SiglipModel"),
        ("hive", "decoder", "float16", "Gemma3ForCausalLM"),
        ("self_attention", "vlm", "float32", "LlavaForConditionalGeneration"),
        ("cascaded", "hive", "float32", "HiveForConditionalGeneration"),
    ],
)
def test_stock_classes_compute_the_same(runs, tmp_path, kind, part, dtype, stock):
    """The certificate's own comparison; it raises if anything differs."""
    out = tmp_path / "export"
    made = export(runs(kind), part, str(out), dtype=dtype)
    assert {path.name for path in out.iterdir()} == FILES[part]
    assert made == certificate_of(out)
    check = made["check"]
    assert check["run"] and check["class"] == stock
    assert check["missing_keys"] == check["unexpected_keys"] == []
    images = {"image processor"} if part != "decoder" else set()
    outputs = {
        "encoder": {"depth 1", "depth 2", "depth 3", "tokens", "pooled"},
        "two_towers": {"image embeddings", "text embeddings", "logits"},
    }.get(part, {"logits"})
    assert set(check["max_abs_difference"]) == outputs | images
    if part in ("vlm", "hive"):
        assert np.shape(check["greedy_tokens"]) == (4, 16)
        assert "greedy" in check["equal"]
    assert stock in (out / "README.md").read_text()
    assert made["run"]["step"] == 7 and made["dtype"] == dtype


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
@pytest.mark.parametrize(
    ("name", "kind", "part"),
    [
        ("bv_bilinear", "hive", "encoder"),
        ("hf_bicubic_pad", "self_attention", "vlm"),
    ],
)
def test_what_transformers_cannot_prepare_is_said(tmp_path, name, kind, part):
    workdir, out = str(tmp_path / "run"), str(tmp_path / "out")
    config = run_config(kind)
    data = dataclasses.replace(config.data, preprocessing=name)
    save_random(dataclasses.replace(config, data=data), workdir)
    made = export(workdir, part, out)
    assert made["check"]["run"] and made["preprocessing"] == name
    card = (tmp_path / "out/README.md").read_text()
    exact = name == "hf_bicubic_pad"
    assert made["image_processor"] == (name if exact else "hf_bilinear")
    assert ("No image processor of transformers" in card) != exact
    assert sources.OPEN[part](out).preprocessing == name


@pytest.mark.parametrize("part", ["encoder", "decoder", "vlm", "hive"])
def test_round_trip_is_bit_equal(runs, tmp_path, part):
    workdir = runs("self_attention" if part == "vlm" else "hive")
    out = tmp_path / "export"
    made = export(workdir, part, str(out), check=False)
    opened = {
        "encoder": sources.open_encoder,
        "decoder": sources.open_decoder,
        "vlm": sources.open_hive,
        "hive": sources.open_hive,
    }[part](str(out))
    stored = stored_params(workdir)
    roots = {"encoder": "img/", "decoder": "llm/"}
    table = "llm/embedder/input_embedding"
    for name, array in opened.leaves():
        wanted = stored[roots.get(part, "") + name]
        if part == "vlm" and name == table:
            np.testing.assert_array_equal(array[512:], wanted[:1])
            array = array[:512]
        np.testing.assert_array_equal(array, wanted)
    assert opened.preprocessing == ("" if part == "decoder" else "hf_bicubic")
    tensors = {name: tensor_hash(t.read()) for name, t in opened.tensors.items()}
    assert made["tensors"] == tensors


def stored_params(workdir: str) -> dict:
    with Checkpoints(workdir, read_only=True) as checkpoints:
        params, _ = checkpoints.restore_params(checkpoints.stored_params())
    return {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}


def test_image_token_is_added_once(runs, tmp_path):
    out = tmp_path / "first"
    made = export(runs("self_attention"), "vlm", str(out), check=False)
    assert made["image_token"] == {"content": "<image>", "id": 512, "rows_added": 1}
    assert load_tokenizer(str(out)).encode("a star") == load_tokenizer(
        DATA.tokenizer
    ).encode("a star")
    config = json.loads((out / "config.json").read_text())
    assert config["text_config"]["vocab_size"] == 513
    # Depth 2 of 3, as transformers counts from the end.
    assert config["vision_feature_layer"] == -2
    assert config["image_seq_length"] == 9
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == [512]
    newline = load_tokenizer(DATA.tokenizer).encode("\n")[0][0]
    assert generation["eos_token_id"] == [1, newline]


def test_target_v4_folds_the_embedding_scale(runs, tmp_path):
    """Only there where transformers 4 scales the image's tokens: Gemma 1 and 2."""
    name = "multi_modal_projector.linear_2.weight"
    for kind, factor in (("self_attention_gemma1", 32**-0.5), ("self_attention", 1)):
        tensors = {}
        for target in ("v5", "v4"):
            out = tmp_path / f"{kind}_{target}"
            made = export(runs(kind), "vlm", str(out), target=target, check=False)
            assert made["target"] == target
            tensors[target] = sources.open_hive(str(out)).tensors[name].read()
        np.testing.assert_allclose(tensors["v4"], tensors["v5"] * factor, rtol=1e-6)
    made = export(runs("self_attention"), "vlm", str(tmp_path / "x"), target="v4")
    assert not made["check"]["run"] and "transformers 4" in made["check"]["reason"]


@pytest.mark.parametrize("target", ["v4", "v5"])
def test_what_is_checked_is_what_the_files_hold(runs, tmp_path, target):
    """Rounded after the scale is folded in, not before."""
    workdir, out = runs("self_attention_gemma1"), tmp_path / "out"
    options = {"dtype": "bfloat16", "target": target}
    export(workdir, "vlm", str(out), check=False, **options)
    held = dict(sources.open_hive(str(out)).leaves())
    chosen, _ = with_image_token(choose(workdir, "vlm"), 512)
    if target == "v4":
        held = hf_models.fold_embedding_scale(held, chosen.model, back=True)
    checked = rounded(chosen, target, DTYPES["bfloat16"])
    assert set(held) == set(checked)
    for name, array in held.items():
        np.testing.assert_array_equal(checked[name], array)


def test_an_encoder_needs_no_tokenizer(runs, tmp_path):
    workdir = tmp_path / "run"
    config = run_config("hive")
    save_random(config, str(workdir))
    with Checkpoints(str(workdir), read_only=True) as checkpoints:
        params, meta = checkpoints.restore_params(checkpoints.stored_params())
    meta["config"]["data"]["tokenizer"] = str(tmp_path / "gone.json")
    with Checkpoints(str(workdir)) as checkpoints:
        state = TrainState(np.zeros((), np.int32) + 8, params, ())
        checkpoints.save(8, state, meta)
        checkpoints.wait()
    for format in FORMATS:
        out = str(tmp_path / format)
        export(str(workdir), "encoder", out, format=format, check=False)
    with pytest.raises(MissingInputError, match=r"gone\.json"):
        export(str(workdir), "decoder", str(tmp_path / "d"), check=False)


def test_where_there_is_no_torch(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "export"
    made = export(runs("hive"), "encoder", str(out))
    assert not made["check"]["run"] and "torch" in made["check"]["reason"]
    assert "**Not run**" in (out / "README.md").read_text()


def test_big_vision_and_state_dict(runs, tmp_path):
    workdir = runs("hive")
    stored = stored_params(workdir)
    export(workdir, "encoder", str(tmp_path / "e.npz"), format="big_vision")
    export(workdir, "hive", str(tmp_path / "h.npz"), format="big_vision")
    for name in ("e", "h"):
        config, params = weights.load_encoder(str(tmp_path / f"{name}.npz"))
        assert config == ENCODER
        for key, array in flatten_dict(params, sep="/").items():
            np.testing.assert_array_equal(array, stored[f"img/{key}"])
    config, _ = weights.load_decoder(str(tmp_path / "h.npz"))
    assert config == GEMMA3  # it travels in the file

    export(workdir, "hive", str(tmp_path / "folder"), check=False)
    file = tmp_path / "h.safetensors"
    export(workdir, "hive", str(file), format="state_dict")
    wanted = (tmp_path / "folder/model.safetensors").read_bytes()
    assert file.read_bytes() == wanted
    for target in ("v4", "v5"):
        vlm = runs("self_attention_gemma1"), "vlm"
        folder, file = tmp_path / target, tmp_path / f"{target}.safetensors"
        export(*vlm, str(folder), target=target, check=False)
        export(*vlm, str(file), target=target, format="state_dict")
        wanted = (folder / "model.safetensors").read_bytes()
        assert file.read_bytes() == wanted


@pytest.mark.parametrize(
    ("kind", "part", "message"),
    [
        ("hive", "vlm", "fusion 'hive'.*no part 'vlm'.*encoder, decoder, hive$"),
        ("self_attention", "hive", "no part 'hive'.*encoder, decoder, vlm$"),
        ("hive", "two_towers", "fusion, img, llm.*no part 'two_towers'"),
        ("contrastive", "decoder", "b, img, t, txt.*as encoder, two_towers$"),
    ],
)
def test_parts_that_a_run_does_not_have(runs, tmp_path, kind, part, message):
    for format in FORMATS:
        with pytest.raises(CheckpointError, match=message):
            export(runs(kind), part, str(tmp_path / "out"), format=format, check=False)
    assert not list(tmp_path.iterdir())


def test_another_tokenizer_than_the_run_s_is_refused(runs, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(runs("hive"), workdir)
    copy_tokenizer(DATA.tokenizer, workdir / "tokenizer")
    export(str(workdir), "decoder", str(tmp_path / "first"), check=False)
    file = workdir / "tokenizer/tokenizer.json"
    file.write_text(file.read_text().replace('"<unk>"', '"<what>"'))
    with pytest.raises(CheckpointError, match="another tokenizer"):
        export(str(workdir), "decoder", str(tmp_path / "second"), check=False)


def test_parameters_and_step_are_of_one_checkpoint(runs, tmp_path):
    """Where the newest is damaged, the one before it goes out, under its own name."""
    workdir = tmp_path / "run"
    shutil.copytree(runs("hive"), workdir)
    save_random(run_config("hive"), str(workdir), step=8)
    for path in (workdir / "checkpoints/8/params").rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[:-5000])
    made = export(str(workdir), "encoder", str(tmp_path / "out"), check=False)
    assert made["run"]["step"] == 7
    assert "7 of 100" in (tmp_path / "out/README.md").read_text()


def test_nothing_is_overwritten_and_nothing_half_written(runs, tmp_path, monkeypatch):
    workdir, out = runs("hive"), tmp_path / "out"
    out.mkdir()
    for format in ("huggingface", "big_vision", "state_dict"):
        with pytest.raises(OutputError, match="exists"):
            export(workdir, "encoder", str(out), format=format, check=False)
    out.rmdir()
    with pytest.raises(ConfigError, match="int8"):
        export(workdir, "encoder", str(out), dtype="int8")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hive_jax.export.exporting.card.model_card", full)
    with pytest.raises(OutputError, match="No space left"):
        export(workdir, "encoder", str(out), check=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
def test_a_wrong_export_is_refused(runs, tmp_path, monkeypatch):
    """As it is written, and when it is checked again after a change."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(certificate, "TOLERANCE", 1e-12)
        with pytest.raises(CheckpointError, match="depth 1: off by .*; limit"):
            export(runs("hive"), "encoder", str(out))
        assert not list(tmp_path.iterdir())
    export(runs("hive"), "encoder", str(out), check=False)
    assert recheck(str(out))["run"]
    (out / "README.md").write_text("a card of one's own")
    config = json.loads((out / "config.json").read_text())
    config["image_size"] = 29
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json changed or missing since"):
        recheck(str(out))


def test_code_that_was_changed_is_not_run(runs, tmp_path):
    out = tmp_path / "out"
    export(runs("hive"), "hive", str(out), check=False)
    with (out / "modeling_hive.py").open("a") as file:
        file.write(f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(CheckpointError, match=r"modeling_hive\.py changed"):
        recheck(str(out))
    assert not (tmp_path / "ran").exists()


def test_a_newline_as_the_end_token(runs, tmp_path):
    """And then the text of a newline is still the token that it was."""
    import transformers

    out = tmp_path / "vlm"
    export(runs("self_attention"), "vlm", str(out), check=False, newline_ends=True)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    ours = load_tokenizer("builtin:tabletop")
    text = "What is it?\nA star.\n"
    assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)[0]
    assert theirs.eos_token_id == ours.encode("\n")[0][0]
    with pytest.raises(
        ConfigError, match="--newline_ends is for a decoder, vlm or hive"
    ):
        export(runs("hive"), "encoder", str(tmp_path / "e"), newline_ends=True)
