"""Other people's weights as the start of a run: sizes, tokenizer and all come along."""

import dataclasses
import shutil
import sys

import jax
import kill_loop
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from hive_jax.config import DataConfig, MeshConfig, RunConfig
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.data.types import Batch
from hive_jax.errors import CheckpointError, ConfigError, MissingInputError, OutputError
from hive_jax.io import atomic_dir, write_json
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.hive import HiveConfig
from hive_jax.models.siglip import SiglipConfig
from hive_jax.training import resolve
from hive_jax.training.import_weights import import_weights
from hive_jax.training.initialization import initial_params
from hive_jax.training.objectives import abstract_params, build_model
from hive_jax.training.resolve import ResolvedRun, resolve_config
from hive_jax.training.sharding import make_mesh
from hive_jax.training.stored_run import open_run
from hive_jax.weights import hf_models
from hive_jax.weights.big_vision import save_npz
from hive_jax.weights.mapping import param_shapes, resize_positions
from hive_jax.weights.safetensors import DTYPES
from hive_jax.weights.sources import open_encoder

ASSET = str(kill_loop.ROOT / "hive_jax/assets/tokenizer.json")
ENCODER = SiglipConfig(32, 4, 48, 2, patch_size=8, image_size=32)
DECODER = DecoderConfig(512, 24, 4, 40, 4, 2, 8, post_norms=True, qk_norm=True)


def random_params(config) -> dict:
    rng = np.random.default_rng(0)
    return {
        name: (rng.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32)
        for name, shape in param_shapes(config).items()
    }


def write_hub_folder(path, layout, arrays) -> str:
    """A model as it is on the hub, written without torch."""
    with atomic_dir(path) as folder:
        hf_models.write(folder, layout, arrays, DTYPES["float32"])
        if isinstance(layout.model, SiglipConfig):
            processor = hf_models.image_processor(32, "hf_bilinear")
            write_json(folder / "preprocessor_config.json", processor)
        else:
            shutil.copy(ASSET, folder / "tokenizer.json")
            write_json(folder / "tokenizer_config.json", {"bos_token": "<bos>"})
    return str(path)


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


def of_weights(**changes) -> RunConfig:
    """A config whose encoder and decoder are those of the weights."""
    model = HiveConfig(num_connections=2)
    return RunConfig(
        **{"model": model, "data": DataConfig(num_tokens=8), "batch_size": 8, **changes}
    )


def start(resolved: ResolvedRun, **changes) -> dict:
    """The parameters of step 0, by name."""
    config = dataclasses.replace(resolved.config, **changes)
    resolved = dataclasses.replace(resolved, config=config)
    batch = Batch.spec(1, config.data.num_tokens, config.model.image_size)
    model = build_model(config)
    abstract = abstract_params(model, batch, make_mesh(MeshConfig()))
    tokenizer = load_tokenizer(config.data.tokenizer).fingerprint
    params = initial_params(resolved, model, abstract, batch, tokenizer)
    return flatten_dict(jax.device_get(params), sep="/")


def assert_towers(params: dict, img: dict, llm: dict) -> None:
    for branch, tower in {"img": img, "llm": llm}.items():
        for name, array in tower.items():
            np.testing.assert_array_equal(params[f"{branch}/{name}"], array)
    assert any(name.startswith("fusion/") for name in params)


def test_imported_weights_are_a_start(hub, imported):
    out, table = imported
    assert "float32" in table and "img" in table and "llm" in table
    resolved = resolve_config(of_weights(init=out))
    config = resolved.config
    assert (config.model.encoder, config.model.decoder) == (ENCODER, DECODER)
    assert config.data.preprocessing == "hf_bilinear"
    assert config.data.tokenizer == f"{out}/tokenizer"
    assert config.model.resolved_connections() == ((2, 2), (4, 4))
    assert_towers(start(resolved), *hub[2:])


def test_folders_are_a_start_by_themselves(hub):
    encoder, decoder, img, llm = hub
    config = of_weights(init_encoder=encoder, init_decoder=decoder)
    resolved = resolve_config(config)
    config = resolved.config
    assert (config.model.encoder, config.model.decoder) == (ENCODER, DECODER)
    assert (config.data.preprocessing, config.data.tokenizer) == (
        "hf_bilinear",
        decoder,
    )
    assert_towers(start(resolved), img, llm)


def test_another_preprocessing_than_the_weights_is_refused(hub):
    data = DataConfig(preprocessing="hf_bicubic")
    config = of_weights(init_encoder=hub[0], init_decoder=hub[1], data=data)
    with pytest.raises(ConfigError, match="trained with 'hf_bilinear'"):
        resolve_config(config)


def test_bars_may_be_added_and_left_out(hub):
    """As LLaVA does with encoders that were trained without."""
    for name in ("hf_bilinear_pad", "hf_bilinear"):
        data = DataConfig(preprocessing=name)
        config = of_weights(init_encoder=hub[0], init_decoder=hub[1], data=data)
        assert resolve_config(config).config.data.preprocessing == name


def test_big_visions_own_npz_is_prepared_as_there(hub, tmp_path):
    path = str(tmp_path / "img.npz")
    np.savez(path, **{f"params/img/{k}": v for k, v in hub[2].items()})
    config = of_weights(init_encoder=path, init_decoder=hub[1])
    assert resolve_config(config).config.data.preprocessing == "bv_bilinear"
    out = str(tmp_path / "out")
    import_weights(path, "", out)
    assert open_run(out).config.data.preprocessing == "bv_bilinear"
    # PaliGemma's, with a decoder in the same file, is another.
    both = {f"img/{k}": v for k, v in hub[2].items()}
    np.savez(path, **both, **{f"llm/{k}": v for k, v in hub[3].items()})
    assert open_encoder(path).preprocessing == ""


def test_only_the_towers_in_use_are_compared_and_read(hub, imported):
    """A decoder alone, from an import of both."""
    model = HiveConfig(fusion="none")
    resolved = resolve_config(of_weights(init=imported[0], model=model))
    assert resolved.config.model.encoder == ENCODER
    params = start(resolved)
    assert {name.split("/")[0] for name in params} == {"llm"}
    for name, array in hub[3].items():
        np.testing.assert_array_equal(params[f"llm/{name}"], array)


def test_tokenizer_larger_than_the_table(hub, tmp_path):
    small = dataclasses.replace(DECODER, vocab_size=500)
    arrays = random_params(small)
    path = write_hub_folder(tmp_path / "gemma", hf_models.decoder(small), arrays)
    with pytest.raises(ConfigError, match="512 tokens, the model a table of 500"):
        import_weights("", path, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_npz_of_ours_brings_everything(hub, tmp_path):
    llm = unflatten_dict({f"llm/{k}": v for k, v in hub[3].items()}, sep="/")
    about = {"llm": dataclasses.asdict(DECODER), "tokenizer": "builtin:tabletop"}
    save_npz(tmp_path / "llm.npz", llm, about)
    decoder = str(tmp_path / "llm.npz")
    resolved = resolve_config(of_weights(init_encoder=hub[0], init_decoder=decoder))
    assert resolved.config.model.decoder == DECODER
    assert resolved.config.data.tokenizer == "builtin:tabletop"
    assert_towers(start(resolved), *hub[2:])


def test_each_source_is_opened_once(hub, imported, monkeypatch):
    """By the resolver and the initialization together."""
    opened = []
    for name in ("open_encoder", "open_decoder", "find_run"):
        function = getattr(resolve, name)

        def counted(path, *more, function=function):
            opened.append(path)
            return function(path, *more)

        monkeypatch.setattr(resolve, name, counted)
    start(resolve_config(of_weights(init_encoder=hub[0], init_decoder=hub[1])))
    assert opened.count(hub[0]) == opened.count(hub[1]) == 1
    start(resolve_config(of_weights(init=imported[0])))
    assert opened.count(imported[0]) == 1


@pytest.mark.parametrize("source", ["imported", "folders"])
def test_positions_are_resized_only_when_asked(hub, imported, source):
    init = {"init": imported[0]}
    if source == "folders":
        init = {"init_encoder": hub[0], "init_decoder": hub[1]}
    resolved = resolve_config(of_weights(image_size=48, **init))
    assert resolved.config.model.encoder == dataclasses.replace(ENCODER, image_size=48)
    assert resolved.config.image_size == 0
    with pytest.raises(
        CheckpointError, match=r"image_size.*\n(.*\n)*.*resize_position"
    ):
        start(resolved)
    wanted = resize_positions(hub[2]["pos_embedding"], 36)
    assert wanted.shape == (1, 36, 32)
    params = start(resolved, resize_positions=True)
    np.testing.assert_array_equal(params["img/pos_embedding"], wanted)
    others = {k: v for k, v in hub[2].items() if k != "pos_embedding"}
    assert_towers(params, others, hub[3])


def test_image_size_at_import(hub, tmp_path):
    out = str(tmp_path / "out")
    import_weights(hub[0], "", out, image_size=16)
    assert open_run(out).config.model.encoder.image_size == 16
    with pytest.raises(ConfigError, match="holds no decoder"):
        resolve_config(of_weights(init=out, init_decoder=hub[1]))
    model = HiveConfig(decoder=DECODER, num_connections=2)
    data = DataConfig(tokenizer=ASSET)
    with pytest.raises(CheckpointError, match="has no llm"):
        start(resolve_config(of_weights(init=out, model=model, data=data)))


def test_other_sizes_than_the_weights_are_named(hub):
    towers = {
        "encoder": dataclasses.replace(ENCODER, depth=5),
        "decoder": dataclasses.replace(DECODER, rope_base=5e5, final_softcap=30.0),
    }
    config = of_weights(init_encoder=hub[0], init_decoder=hub[1])
    for name, tower in towers.items():
        model = dataclasses.replace(config.model, **{name: tower})
        changed = resolve_config(dataclasses.replace(config, model=model))
        expected = f"config.model.{name}=None"
        with pytest.raises(CheckpointError, match=expected) as error:
            start(changed)
        if name == "decoder":
            assert "rope_base is 500000.0; the weights have 10000.0" in str(error.value)
            assert "final_softcap is 30.0" in str(error.value)
        else:
            assert "model.encoder.depth is 5; the weights have 4" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({}, ConfigError, "encoder is None, and no weights decide"),
        ({"init": "nowhere"}, MissingInputError, "no checkpoint in nowhere"),
        ({"init_encoder": "no/where/x"}, MissingInputError, "no/where/x"),
    ],
)
def test_what_nothing_tells(changes, error, message):
    with pytest.raises(error, match=message):
        resolve_config(of_weights(**changes))


def test_no_tokenizer_beside_the_weights(hub, tmp_path):
    shutil.copytree(hub[1], tmp_path / "gemma")
    (tmp_path / "gemma/tokenizer.json").unlink()
    decoder = str(tmp_path / "gemma")
    with pytest.raises(ConfigError, match="no tokenizer came with the weights"):
        resolve_config(of_weights(init_encoder=hub[0], init_decoder=decoder))
    out = str(tmp_path / "out")
    import_weights(hub[0], decoder, out, tokenizer="builtin:tabletop")
    assert open_run(out).config.data.tokenizer == f"{out}/tokenizer"


def test_import_is_whole_or_nothing(hub, tmp_path):
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


def test_the_command_trains_and_goes_on(hub, tmp_path):
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
    first = kill_loop.start(command, tmp_path / "cache")
    output = kill_loop.finish(first)
    assert "step 2: validation loss" in output
    config = open_run(str(tmp_path / "run")).config
    assert config.model.encoder == ENCODER
    assert (tmp_path / "run/tokenizer/tokenizer_config.json").is_file()

    shutil.rmtree(encoder)
    shutil.rmtree(decoder)
    again = kill_loop.start(command, tmp_path / "cache")
    assert "finished already" in kill_loop.finish(again)
