"""Importing weights of other projects: config, tokenizer and parameters."""

import dataclasses
import shutil
import sys

import numpy as np
import pytest
from helpers.hub_weights import (
    DECODER,
    ENCODER,
    TOKENIZER,
    initialize,
    random_params,
    weights_config,
    write_hub_folder,
)

from hive_jax.config import DataConfig
from hive_jax.errors import CheckpointError, ConfigError, MissingInputError, OutputError
from hive_jax.models.config import HiveConfig
from hive_jax.training.import_weights import import_weights
from hive_jax.training.resolve import resolve_config
from hive_jax.training.stored_run import open_run
from hive_jax.weights import hf_models
from hive_jax.weights.sources import open_encoder
from tools.fault_suite import micro_run


def test_a_big_vision_npz_has_the_preprocessing_of_big_vision(hub, tmp_path):
    path = str(tmp_path / "img.npz")
    np.savez(path, **{f"params/img/{k}": v for k, v in hub[2].items()})
    config = weights_config(init_encoder=path, init_decoder=hub[1])
    assert resolve_config(config).config.data.preprocessing == "bv_bilinear"
    out = str(tmp_path / "out")
    import_weights(path, "", out)
    assert open_run(out).config.data.preprocessing == "bv_bilinear"
    # PaliGemma's, with a decoder in the same file, is another.
    both = {f"img/{k}": v for k, v in hub[2].items()}
    np.savez(path, **both, **{f"llm/{k}": v for k, v in hub[3].items()})
    assert open_encoder(path).preprocessing == ""


def test_a_tokenizer_larger_than_the_embedding_table_is_refused(hub, tmp_path):
    small = dataclasses.replace(DECODER, vocab_size=500)
    arrays = random_params(small)
    path = write_hub_folder(tmp_path / "gemma", hf_models.decoder(small), arrays)
    with pytest.raises(ConfigError, match="512 tokens, the model a table of 500"):
        import_weights("", path, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_import_changes_the_image_size(hub, tmp_path):
    out = str(tmp_path / "out")
    import_weights(hub[0], "", out, image_size=16)
    assert open_run(out).config.model.encoder.image_size == 16
    with pytest.raises(ConfigError, match="holds no decoder"):
        resolve_config(weights_config(init=out, init_decoder=hub[1]))
    model = HiveConfig(decoder=DECODER, num_connections=2)
    data = DataConfig(tokenizer=TOKENIZER)
    with pytest.raises(CheckpointError, match="has no llm"):
        initialize(resolve_config(weights_config(init=out, model=model, data=data)))


def test_weights_without_a_tokenizer_need_one(hub, tmp_path):
    shutil.copytree(hub[1], tmp_path / "gemma")
    (tmp_path / "gemma/tokenizer.json").unlink()
    decoder = str(tmp_path / "gemma")
    with pytest.raises(ConfigError, match="no tokenizer came with the weights"):
        resolve_config(weights_config(init_encoder=hub[0], init_decoder=decoder))
    out = str(tmp_path / "out")
    import_weights(hub[0], decoder, out, tokenizer="builtin:tabletop")
    assert open_run(out).config.data.tokenizer == f"{out}/tokenizer"


def test_a_failed_import_writes_nothing(hub, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="nothing to import"):
        import_weights("", "", str(out))
    with pytest.raises(MissingInputError, match="nowhere"):
        import_weights(hub[0], "nowhere", str(out))
    with pytest.raises(CheckpointError, match="model_type is 'siglip_vision_model'"):
        import_weights(hub[0], hub[0], str(out))
    assert not list(tmp_path.iterdir())
    out.mkdir()
    with pytest.raises(OutputError, match="exists"):
        import_weights(hub[0], hub[1], str(out))


def test_a_run_resumes_without_its_initial_weights(hub, tmp_path):
    """From folders, then without them: all of a run is in its workdir."""
    encoder, decoder = tmp_path / "siglip", tmp_path / "gemma"
    shutil.copytree(hub[0], encoder)
    shutil.copytree(hub[1], decoder)
    overrides = (
        f"--config.init_encoder={encoder}",
        f"--config.init_decoder={decoder}",
        "--config.total_steps=2",
        "--config.batch_size=8",
        "--config.data.validation_size=8",
        "--config.checkpoint_every=1",
        "--config.data.num_tokens=24",
    )
    command = [sys.executable, "-m", "hive_jax.train", "--config", "configs/stage1.py"]
    command += [f"--workdir={tmp_path / 'run'}", *overrides]
    first = micro_run.start(command, tmp_path / "cache")
    output = micro_run.finish(first)
    assert "step 2: validation loss" in output
    config = open_run(str(tmp_path / "run")).config
    assert config.model.encoder == ENCODER
    assert (tmp_path / "run/tokenizer/tokenizer_config.json").is_file()

    shutil.rmtree(encoder)
    shutil.rmtree(decoder)
    again = micro_run.start(command, tmp_path / "cache")
    assert "finished already" in micro_run.finish(again)
