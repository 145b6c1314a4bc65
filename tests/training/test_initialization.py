"""Initial parameters: of imported weights, of folders, or random."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.hub_weights import (
    DECODER,
    ENCODER,
    assert_towers,
    initialize,
    weights_config,
)
from helpers.random_runs import save_params

from hive_jax.errors import CheckpointError
from hive_jax.models.config import HiveConfig
from hive_jax.training import objectives
from hive_jax.training.resolve import resolve_config
from hive_jax.weights.big_vision import save_npz
from hive_jax.weights.mapping import resize_positions


def test_initial_parameters_are_those_of_an_import(hub, imported):
    out, table = imported
    assert "float32" in table and "img" in table and "llm" in table
    resolved = resolve_config(weights_config(init=out))
    config = resolved.config
    assert (config.model.encoder, config.model.decoder) == (ENCODER, DECODER)
    assert config.data.preprocessing == "hf_bilinear"
    assert config.data.tokenizer == f"{out}/tokenizer"
    assert config.model.resolved_connections() == ((2, 2), (4, 4))
    assert_towers(initialize(resolved), *hub[2:])


def test_initial_parameters_are_those_of_hub_folders(hub):
    encoder, decoder, img, llm = hub
    config = weights_config(init_encoder=encoder, init_decoder=decoder)
    resolved = resolve_config(config)
    config = resolved.config
    assert (config.model.encoder, config.model.decoder) == (ENCODER, DECODER)
    assert (config.data.preprocessing, config.data.tokenizer) == (
        "hf_bilinear",
        decoder,
    )
    assert_towers(initialize(resolved), img, llm)


def test_only_the_branches_of_the_model_are_compared_and_loaded(hub, imported):
    """A decoder alone, from an import of both."""
    model = HiveConfig(fusion="none")
    resolved = resolve_config(weights_config(init=imported[0], model=model))
    assert resolved.config.model.encoder == ENCODER
    params = initialize(resolved)
    assert {name.split("/")[0] for name in params} == {"llm"}
    for name, array in hub[3].items():
        np.testing.assert_array_equal(params[f"llm/{name}"], array)


def test_an_npz_with_metadata_gives_architecture_and_tokenizer(hub, tmp_path):
    llm = unflatten_dict({f"llm/{k}": v for k, v in hub[3].items()}, sep="/")
    about = {"llm": dataclasses.asdict(DECODER), "tokenizer": "builtin:tabletop"}
    save_npz(tmp_path / "llm.npz", llm, about)
    decoder = str(tmp_path / "llm.npz")
    resolved = resolve_config(weights_config(init_encoder=hub[0], init_decoder=decoder))
    assert resolved.config.model.decoder == DECODER
    assert resolved.config.data.tokenizer == "builtin:tabletop"
    assert_towers(initialize(resolved), *hub[2:])


@pytest.mark.parametrize("source", ["imported", "folders"])
def test_positions_are_resized_only_with_resize_positions(hub, imported, source):
    init = {"init": imported[0]}
    if source == "folders":
        init = {"init_encoder": hub[0], "init_decoder": hub[1]}
    resolved = resolve_config(weights_config(image_size=48, **init))
    assert resolved.config.model.encoder == dataclasses.replace(ENCODER, image_size=48)
    assert resolved.config.image_size == 0
    with pytest.raises(
        CheckpointError, match=r"image_size.*\n(.*\n)*.*resize_position"
    ):
        initialize(resolved)
    expected = resize_positions(hub[2]["pos_embedding"], 36)
    assert expected.shape == (1, 36, 32)
    params = initialize(resolved, resize_positions=True)
    np.testing.assert_array_equal(params["img/pos_embedding"], expected)
    others = {k: v for k, v in hub[2].items() if k != "pos_embedding"}
    assert_towers(params, others, hub[3])


def test_every_difference_to_the_architecture_of_the_weights_is_named(hub):
    towers = {
        "encoder": dataclasses.replace(ENCODER, depth=5),
        "decoder": dataclasses.replace(DECODER, rope_base=5e5, final_softcap=30.0),
    }
    config = weights_config(init_encoder=hub[0], init_decoder=hub[1])
    for name, tower in towers.items():
        model = dataclasses.replace(config.model, **{name: tower})
        changed = resolve_config(dataclasses.replace(config, model=model))
        expected = f"config.model.{name}=None"
        with pytest.raises(CheckpointError, match=expected) as error:
            initialize(changed)
        if name == "decoder":
            assert "rope_base is 500000.0; the weights have 10000.0" in str(error.value)
            assert "final_softcap is 30.0" in str(error.value)
        else:
            assert "model.encoder.depth is 5; the weights have 4" in str(error.value)


def joint_config(image_kv, **changes):
    config = weights_config(**changes)
    model = dataclasses.replace(config.model, fusion="joint", image_kv=image_kv)
    return dataclasses.replace(config, model=model)


def test_own_projections_of_the_image_start_from_the_connected_layers(hub, tmp_path):
    """Without an earlier stage, and after one that shared them; then they are kept."""
    folders = {"init_encoder": hub[0], "init_decoder": hub[1]}
    name, layers = "fusion/joint_attention/kv/kv_einsum/w", [1, 3]
    started = initialize(resolve_config(joint_config("own", **folders)))
    of_layers = hub[3]["layers/attn/kv_einsum/w"][layers]
    np.testing.assert_array_equal(started[name], of_layers)

    shared = resolve_config(joint_config("shared", **folders)).config
    params = initialize(resolve_config(shared))
    assert name not in params
    kv = "llm/layers/attn/kv_einsum/w"
    params |= {kv: params[kv] + 1, "fusion/projector/norm/bias": np.ones((2, 32), "f4")}
    save_params(shared, unflatten_dict(params, sep="/"), str(tmp_path / "one"), 100)
    handed = initialize(resolve_config(joint_config("own", init=str(tmp_path / "one"))))
    np.testing.assert_array_equal(handed[name], of_layers + 1)
    assert {*handed} == {*params, name}
    for key, array in params.items():
        np.testing.assert_array_equal(handed[key], array)

    own = resolve_config(joint_config("own", init=str(tmp_path / "one"))).config
    handed[name] = handed[name] * 2
    save_params(own, unflatten_dict(handed, sep="/"), str(tmp_path / "two"), 100)
    kept = initialize(resolve_config(joint_config("own", init=str(tmp_path / "two"))))
    np.testing.assert_array_equal(kept[name], (of_layers + 1) * 2)
    back = resolve_config(joint_config("shared", init=str(tmp_path / "two")))
    with pytest.raises(CheckpointError, match=r"model\.image_kv: own -> shared"):
        initialize(back)


def test_initial_parameters_are_a_function_of_the_seed(tiny_run, random_batch):
    run = tiny_run(objective="contrastive")
    model, batch = objectives.build_model(run), random_batch(run)
    init = jax.jit(lambda seed: objectives.init_params(model, batch, seed))
    one, again, other = (flatten_dict(jax.device_get(init(seed))) for seed in (0, 0, 1))
    for name, leaf in one.items():
        assert leaf.tobytes() == again[name].tobytes()
    assert any(np.any(one[name] != other[name]) for name in one)
