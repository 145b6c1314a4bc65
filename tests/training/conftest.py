"""Fixtures that several test modules of training share."""

import jax
import pytest
from helpers.hub_weights import DECODER, ENCODER, random_params, write_hub_folder

from hive_jax.training import objectives
from hive_jax.training.import_weights import import_weights
from hive_jax.weights import hf_models


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder for compiled programs, which processes of all tests share."""
    return tmp_path_factory.mktemp("compilation_cache")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Folders of an encoder and a decoder, and their parameters."""
    folder = tmp_path_factory.mktemp("hub")
    img, llm = random_params(ENCODER), random_params(DECODER)
    encoder = write_hub_folder(folder / "siglip", hf_models.encoder(ENCODER), img)
    decoder = write_hub_folder(folder / "gemma", hf_models.decoder(DECODER), llm)
    return encoder, decoder, img, llm


@pytest.fixture(scope="module")
def imported(hub, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "weights"
    table = import_weights(hub[0], hub[1], str(out))
    return str(out), table


@pytest.fixture(scope="module")
def hive2(training, tiny_run, stage_rules):
    """HIVE with the rules of stage 2."""
    return training(tiny_run("hive", rules=stage_rules(2, "hive")))


@pytest.fixture(scope="module")
def hive2_losses(hive2):
    """batch -> the loss of each token, with the parameters of step 0."""
    model, params = hive2.model, hive2.start().params

    def losses(batch):
        features = objectives.image_features(model, params, batch)
        return objectives.token_losses(model, params, batch, features)

    return jax.jit(losses)
