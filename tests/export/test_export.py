"""Exports are written whole or not at all, and round trips keep every bit."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.exported_runs import DATA, ENCODER, GEMMA3, run_config
from helpers.random_runs import save_random

from hive_jax import weights
from hive_jax.data.tokenizer import copy_tokenizer, load_tokenizer, tokenizer_file
from hive_jax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingInputError,
    OutputError,
)
from hive_jax.export.choices import FORMATS
from hive_jax.export.components import COMPONENTS
from hive_jax.export.export import export
from hive_jax.export.tokenizer import export_tokenizer
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.stored_run import read_result
from hive_jax.training.train_step import TrainState
from hive_jax.weights.safetensors import tensor_hash
from hive_jax.weights.sources import open_hive


def test_the_card_has_no_markup_of_values_and_no_path_of_the_disk(tmp_path):
    private = tmp_path / "home/ada/secret-project"
    private.mkdir(parents=True)
    markup = "<script>alert(1)<b> | `x` [a](c) *d*"
    source = (
        f"2*llava:{private}/chat.json,images={private}/{markup}.zip + "
        "1*llava:../b.json,images=~/images"
    )
    config = run_config("hive")
    config = dataclasses.replace(
        config,
        name=markup,
        init=f"{private}/stage|0",
        data=dataclasses.replace(config.data, source=source),
    )
    workdir = private / "run"
    save_random(config, str(workdir))
    keys = {"loss": 1.0, "gain\n\n# New <b>| x": 2.0}
    (workdir / "result.json").write_text(json.dumps({"validation": keys}))
    export(str(workdir), "encoder", str(tmp_path / "a|b <i>"), verify=False)
    card = (tmp_path / "a|b <i>/README.md").read_text()
    assert "<script" not in card and "<b>" not in card and "<i>" not in card
    assert "&lt;script&gt;alert(1)&lt;" in card
    assert r"# a\|b &lt;i&gt;" in card.splitlines()
    assert not [line for line in card.splitlines() if line.startswith("# New")]
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert r"| started from | stage\|0 |" in rows
    (data,) = (row for row in rows if row.startswith("| data |"))
    assert data.startswith(r"| data | 2\*llava:chat.json,images=&lt;script")
    assert r"1\*llava:b.json,images=images |" in data
    front = card.split("---")[1]
    assert front == "\nlibrary_name: transformers\n" + front.split("\n", 2)[2]
    for file in (tmp_path / "a|b <i>").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
        assert b"secret-project" not in file.read_bytes(), file.name


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("[" * 10**5, "nested too deeply"),
        ("{}", "has no 'validation'; expected an object"),
        ('{"validation": 5}', "'validation' is 5; expected an object"),
        ('{"validation": {"loss": "x"}}', "validation: 'loss' is 'x'; expected a num"),
        ('{"validation": {}, "relative_distance": []}', "'relative_distance' is []"),
    ],
)
def test_a_spoiled_result_is_named(tmp_path, result, message):
    (tmp_path / "result.json").write_text(result)
    with pytest.raises(DataError) as caught:
        read_result(tmp_path)
    assert message in str(caught.value) and "result.json" in str(caught.value)


@pytest.mark.parametrize("component", COMPONENTS)
def test_round_trip_is_bit_equal(runs, tmp_path, component):
    kind = {"vlm": "self_attention", "two_towers": "contrastive"}.get(component, "hive")
    workdir, out = runs(kind), tmp_path / "export"
    report = export(workdir, component, str(out), verify=False)
    opened = COMPONENTS[component].open(str(out))
    stored = stored_params(workdir)
    roots = {"encoder": "img/", "decoder": "llm/"}
    table = "llm/embedder/input_embedding"
    for name, array in opened.leaves():
        expected = stored[roots.get(component, "") + name]
        if component == "vlm" and name == table:
            np.testing.assert_array_equal(array[512:], expected[:1])
            array = array[:512]
        np.testing.assert_array_equal(array, expected)
    assert opened.preprocessing == ("" if component == "decoder" else "hf_bicubic")
    tensors = {name: tensor_hash(t.read()) for name, t in opened.tensors.items()}
    assert report["tensors"] == tensors


def stored_params(workdir: str) -> dict:
    with Checkpoints(workdir, read_only=True) as checkpoints:
        params, _ = checkpoints.restore_params(checkpoints.stored_params())
    return {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}


def test_image_token_is_added_once(runs, tmp_path):
    out = tmp_path / "first"
    report = export(runs("self_attention"), "vlm", str(out), verify=False)
    assert report["image_token"] == {"content": "<image>", "id": 512, "rows_added": 1}
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
    """For Gemma 1 and 2, where transformers 4 scales the image tokens, and no other."""
    name = "multi_modal_projector.linear_2.weight"
    for kind, factor in (("self_attention of gemma1", 32**-0.5), ("self_attention", 1)):
        tensors = {}
        for target in ("v5", "v4"):
            out = tmp_path / f"{kind}_{target}"
            report = export(runs(kind), "vlm", str(out), target=target, verify=False)
            assert report["target"] == target
            tensors[target] = open_hive(str(out)).tensors[name].read()
        np.testing.assert_allclose(tensors["v4"], tensors["v5"] * factor, rtol=1e-6)
    report = export(runs("self_attention"), "vlm", str(tmp_path / "x"), target="v4")
    verification = report["verification"]
    assert not verification["run"] and "transformers 4" in verification["reason"]


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
        export(str(workdir), "encoder", out, format=format, verify=False)
    with pytest.raises(MissingInputError, match=r"gone\.json"):
        export(str(workdir), "decoder", str(tmp_path / "d"), verify=False)


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
    assert config == GEMMA3  # stored in the file

    export(workdir, "hive", str(tmp_path / "folder"), verify=False)
    file = tmp_path / "h.safetensors"
    export(workdir, "hive", str(file), format="state_dict")
    expected = (tmp_path / "folder/model.safetensors").read_bytes()
    assert file.read_bytes() == expected
    for target in ("v4", "v5"):
        vlm = runs("self_attention of gemma1"), "vlm"
        folder, file = tmp_path / target, tmp_path / f"{target}.safetensors"
        export(*vlm, str(folder), target=target, verify=False)
        export(*vlm, str(file), target=target, format="state_dict")
        expected = (folder / "model.safetensors").read_bytes()
        assert file.read_bytes() == expected


@pytest.mark.parametrize(
    ("kind", "component", "message"),
    [
        ("hive", "vlm", "fusion 'hive'.*no component 'vlm'.*encoder, decoder, hive$"),
        ("self_attention", "hive", "no component 'hive'.*encoder, decoder, vlm$"),
        ("hive", "two_towers", "fusion, img, llm.*no component 'two_towers'"),
        ("contrastive", "decoder", "b, img, t, txt.*as encoder, two_towers$"),
    ],
)
def test_components_that_a_run_lacks_are_refused(
    runs, tmp_path, kind, component, message
):
    for format in FORMATS:
        with pytest.raises(CheckpointError, match=message):
            export(runs(kind), component, str(tmp_path / "out"), format=format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argument", ["component", "format", "dtype", "target"])
def test_unknown_choices_are_refused(tmp_path, argument):
    arguments = {"component": "encoder", argument: "x"}
    with pytest.raises(ConfigError, match=f"^{argument} is 'x'; expected one of "):
        export("no run", out=str(tmp_path / "out"), **arguments)


def test_tokenizer_of_another_training_is_refused(runs, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(runs("hive"), workdir)
    copy_tokenizer(DATA.tokenizer, workdir / "tokenizer")
    export(str(workdir), "decoder", str(tmp_path / "first"), verify=False)
    file = workdir / "tokenizer/tokenizer.json"
    file.write_text(file.read_text().replace('"<unk>"', '"<what>"'))
    with pytest.raises(CheckpointError, match="another tokenizer"):
        export(str(workdir), "decoder", str(tmp_path / "second"), verify=False)


def test_parameters_and_step_are_of_one_checkpoint(runs, tmp_path):
    """If the newest is damaged, the one before it is exported, with its own step."""
    workdir = tmp_path / "run"
    shutil.copytree(runs("hive"), workdir)
    save_random(run_config("hive"), str(workdir), step=8)
    for path in (workdir / "checkpoints/8/params").rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[:-5000])
    report = export(str(workdir), "encoder", str(tmp_path / "out"), verify=False)
    assert report["run"]["step"] == 7
    assert "7 of 100" in (tmp_path / "out/README.md").read_text()


def test_nothing_is_overwritten_and_nothing_half_written(runs, tmp_path, monkeypatch):
    workdir, out = runs("hive"), tmp_path / "out"
    out.mkdir()
    for format in ("huggingface", "big_vision", "state_dict"):
        with pytest.raises(OutputError, match="exists"):
            export(workdir, "encoder", str(out), format=format, verify=False)
    out.rmdir()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hive_jax.export.export.model_card", full)
    with pytest.raises(OutputError, match="No space left"):
        export(workdir, "encoder", str(out), verify=False)
    assert not list(tmp_path.iterdir())


def test_newline_as_the_end_token(runs, tmp_path):
    """A newline in a text is still encoded as the same token."""
    import transformers

    out = tmp_path / "vlm"
    export(runs("self_attention"), "vlm", str(out), verify=False, newline_ends=True)
    exported = transformers.AutoTokenizer.from_pretrained(out)
    original = load_tokenizer("builtin:tabletop")
    text = "What is it?\nA star.\n"
    assert exported.encode(text, add_special_tokens=False) == original.encode(text)[0]
    assert exported.eos_token_id == original.encode("\n")[0][0]
    with pytest.raises(ConfigError, match="^newline_ends needs a component that gen"):
        export(runs("hive"), "encoder", str(tmp_path / "e"), newline_ends=True)


@pytest.mark.parametrize("text", ["<bos> a", "a<eos>b", "<pad>", "<unk>", "<image>"])
def test_names_of_special_tokens_are_text_as_in_training(tmp_path, text):
    transformers = pytest.importorskip("transformers")
    file, ours = tokenizer_file(DATA.tokenizer), load_tokenizer(DATA.tokenizer)
    export_tokenizer(file).write(tmp_path)
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert exported(text)["input_ids"] == [ours.bos_id, *ours.encode(text)[0]]
