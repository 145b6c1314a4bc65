"""Resolving a config: values that it leaves to the initial weights."""

import dataclasses
import shutil

import pytest
from helpers.hub_weights import initialize, weights_config

from hive_jax.config import DataConfig
from hive_jax.errors import ConfigError, MissingInputError
from hive_jax.inference.encoder import load_encoder
from hive_jax.inference.model import load
from hive_jax.training import resolve
from hive_jax.training.import_weights import import_weights
from hive_jax.training.resolve import resolve_config
from hive_jax.training.stored_run import open_run


def test_preprocessing_must_be_that_of_the_weights(hub):
    data = DataConfig(preprocessing="hf_bicubic")
    config = weights_config(init_encoder=hub[0], init_decoder=hub[1], data=data)
    with pytest.raises(ConfigError, match="trained with 'hf_bilinear'"):
        resolve_config(config)


def test_padding_may_differ_from_that_of_the_weights(hub):
    """As LLaVA does with encoders that were trained without."""
    for name in ("hf_bilinear_pad", "hf_bilinear"):
        data = DataConfig(preprocessing=name)
        config = weights_config(init_encoder=hub[0], init_decoder=hub[1], data=data)
        assert resolve_config(config).config.data.preprocessing == name


def unrecorded(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "unrecorded")
    (tmp_path / "unrecorded/preprocessor_config.json").unlink()
    return str(tmp_path / "unrecorded")


def test_an_assumed_preprocessing_is_one_line(hub, tmp_path, caplog):
    """The line names the weights and what is assumed; a value that is set ends it."""
    path = unrecorded(hub[0], tmp_path)
    config = weights_config(init_encoder=path, init_decoder=hub[1])
    line = f"{path} does not record its image preprocessing: assuming 'hf_bicubic'"
    assert resolve_config(config).config.data.preprocessing == "hf_bicubic"
    assert caplog.text.count(line) == 1
    caplog.clear()
    data = dataclasses.replace(config.data, preprocessing="hf_bilinear")
    config = dataclasses.replace(config, data=data)
    assert resolve_config(config).config.data.preprocessing == "hf_bilinear"
    recorded = weights_config(init_encoder=hub[0], init_decoder=hub[1])
    assert resolve_config(recorded).config.data.preprocessing == "hf_bilinear"
    assert not caplog.text


def test_an_import_does_not_decide_an_unrecorded_preprocessing(hub, tmp_path, caplog):
    out = str(tmp_path / "out")
    import_weights(unrecorded(hub[0], tmp_path), hub[1], out)
    assert open_run(out).config.data.preprocessing == ""
    assert resolve_config(weights_config(init=out)).config.data.preprocessing == (
        "hf_bicubic"
    )
    assert f"{out} does not record its image preprocessing" in caplog.text
    config = weights_config(init=out, data=DataConfig(preprocessing="hf_bilinear"))
    assert resolve_config(config).config.data.preprocessing == "hf_bilinear"


def test_inference_names_an_assumed_preprocessing(hub, tmp_path, caplog):
    path = unrecorded(hub[0], tmp_path)
    assert load_encoder(path, preprocessing="hf_bilinear").preprocessing
    assert not caplog.text
    for loader in (load_encoder, lambda path: load(path).encoder):
        assert loader(path).preprocessing == "hf_bicubic"
        assert caplog.text.count("assuming 'hf_bicubic'") == 1
        caplog.clear()


def test_each_weight_source_is_opened_once(hub, imported, monkeypatch):
    """By the resolver and the initialization together."""
    opened = []
    for name in ("open_encoder", "open_decoder", "find_run"):
        function = getattr(resolve, name)

        def counted(path, *more, function=function):
            opened.append(path)
            return function(path, *more)

        monkeypatch.setattr(resolve, name, counted)
    initialize(resolve_config(weights_config(init_encoder=hub[0], init_decoder=hub[1])))
    assert opened.count(hub[0]) == opened.count(hub[1]) == 1
    initialize(resolve_config(weights_config(init=imported[0])))
    assert opened.count(imported[0]) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({}, ConfigError, "encoder is None, and no weights decide"),
        ({"init": "nowhere"}, MissingInputError, "no checkpoint in nowhere"),
        ({"init_encoder": "no/where/x"}, MissingInputError, "no/where/x"),
    ],
)
def test_a_missing_architecture_or_weight_file_is_an_error(changes, error, message):
    with pytest.raises(error, match=message):
        resolve_config(weights_config(**changes))
