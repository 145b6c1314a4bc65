"""Resolving a config: values that it leaves to the initial weights."""

import pytest
from helpers.hub_weights import initialize, weights_config

from hive_jax.config import DataConfig
from hive_jax.errors import ConfigError, MissingInputError
from hive_jax.training import resolve
from hive_jax.training.resolve import resolve_config


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
