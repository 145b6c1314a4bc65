"""What we write is what transformers' own classes load, and what we read again."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.huggingface_models import (
    LLAMAS,
    assert_close,
    gemma1,
    gemma2,
    randomised,
    save,
    siglip2,
    stretched_gemma3,
    torch_images,
    vision_tower,
)
from helpers.tiny_weights import (
    DECODERS,
    IMAGE,
    TEXT,
    arrays,
    hive_config,
    stored,
    write_folder,
)
from PIL import Image

from hive_jax.data.transforms import resize_image
from hive_jax.models.decoder import Decoder
from hive_jax.models.hive import Hive
from hive_jax.models.siglip import SiglipEncoder, TwoTowers
from hive_jax.weights import (
    hf_image_processor,
    hf_models,
    load_decoder,
    load_encoder,
    load_two_towers,
    save_encoder,
    sources,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
TOKENS = RNG.integers(2, 60, (2, 9))
EACH_DECODER = pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)


def loaded(name, folder):
    """By a class of transformers: every tensor found its place, in float32."""
    model, report = getattr(transformers, name).from_pretrained(
        folder,
        output_loading_info=True,
        attn_implementation="eager",
        dtype=torch.float32,
        local_files_only=True,
    )
    assert not any(report.values()), report
    return model.eval()


def variables(config, dtype=np.float32):
    """The random parameters of `write_folder`, rounded as they are stored."""
    values = {
        name: array.astype(dtype).astype(np.float32)
        for name, array in arrays(config).items()
    }
    return {"params": unflatten_dict(values, sep="/")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("map_head", [True, False])
def test_save_encoder(tmp_path, map_head, dtype):
    config = dataclasses.replace(IMAGE, map_head=map_head)
    folder = tmp_path / "encoder"
    save_encoder(folder, config, variables(config)["params"], dtype=dtype)
    model = loaded("SiglipVisionModel", folder)
    assert not {kind for kind, _, _ in stored(folder).values()} - {dtype}

    rounded = variables(config, np.dtype(getattr(ml_dtypes, dtype, dtype)))
    wanted = model(torch_images(IMAGES), output_hidden_states=True)
    apply = jax.jit(SiglipEncoder(config).apply, static_argnums=2)
    out = apply(rounded, IMAGES, (1, 2))
    assert_close(out.tokens, wanted.last_hidden_state)
    for features, hidden in zip(out.features, wanted.hidden_states[1:], strict=True):
        assert_close(features, hidden)
    if map_head:
        assert_close(out.pooled, wanted.pooler_output)


IMAGE_FILE = np.random.default_rng(0).integers(0, 256, (31, 50, 3), np.uint8)


@pytest.mark.parametrize("preprocessing", hf_image_processor.PROCESSORS)
def test_image_processor(tmp_path, preprocessing):
    folder = tmp_path / "encoder"
    params = variables(IMAGE)["params"]
    save_encoder(folder, IMAGE, params, preprocessing=preprocessing)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    image = Image.fromarray(IMAGE_FILE)
    pixels = processor(image, return_tensors="np")["pixel_values"][0]
    wanted = resize_image(image, 8, preprocessing).transpose(2, 0, 1) / 127.5 - 1.0
    np.testing.assert_allclose(pixels, wanted, atol=1e-6)
    assert sources.open_encoder(str(folder)).preprocessing == preprocessing


@EACH_DECODER
def test_decoder_in_shards(tmp_path, decoder):
    layout = hf_models.decoder(decoder)
    path = write_folder(tmp_path, layout, max_shard_bytes=9000)
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 2
    model = loaded(layout.config["architectures"][0], path)
    got = jax.jit(Decoder(decoder).apply)(variables(decoder), TOKENS)
    assert_close(got, model(torch.tensor(TOKENS)).logits)


def test_two_towers(tmp_path):
    model = loaded(
        "SiglipModel", write_folder(tmp_path, hf_models.two_towers(IMAGE, TEXT))
    )
    wanted = model(torch.tensor(TOKENS[:, :6]), torch_images(IMAGES))
    apply = jax.jit(TwoTowers(IMAGE, TEXT).apply)
    zimg, ztxt, t, b = apply(variables((IMAGE, TEXT)), IMAGES, TOKENS[:, :6])
    logits = np.asarray(zimg) @ np.asarray(ztxt).T * t.item() + b.item()
    assert_close(logits, wanted.logits_per_image)


@EACH_DECODER
def test_vlm(tmp_path, decoder):
    """[image tokens][bos][text]: the same logits for the text, at its positions, and
    the image's tokens as the projector leaves them; but LLaVA has no final soft-cap."""
    config, image_token = hive_config("self_attention", decoder), 60
    model = loaded(
        "LlavaForConditionalGeneration",
        write_folder(tmp_path, hf_models.vlm(config, image_token)),
    )
    count = config.encoder.num_patches
    prompt = np.concatenate([np.full((2, count), image_token), TOKENS], axis=1)
    wanted = model(torch.tensor(prompt), torch_images(IMAGES)).logits[:, count:]

    @jax.jit
    def logits(params, tokens):
        hive = Hive(config)
        hidden = hive.apply(params, IMAGES, tokens, np.ones(tokens.shape, bool))
        return hive.apply(params, hidden, method="logits")

    if cap := decoder.final_softcap:
        wanted = torch.tanh(wanted / cap) * cap
    assert_close(logits(variables(config), TOKENS), wanted)


def of_version_4(name):
    """Version 5 leaves out the first name of an image tower's tensors."""
    return (
        name
        if name.startswith(("vision_model.", "text_model.", "logit_"))
        else (f"vision_model.{name}")
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard", ["20KB", "5GB"])
@pytest.mark.parametrize(
    "make", [vision_tower, siglip2, gemma1, gemma2, stretched_gemma3, *LLAMAS]
)
def test_theirs_to_ours_to_theirs(tmp_path, make, shard, dtype):
    """Every tensor comes back with the same bytes."""
    model = randomised(make(True)[0] if make is vision_tower else make()[0])
    path = save(model, tmp_path / "theirs", dtype, max_shard_size=shard)
    wanted = stored(path)
    if make is siglip2:
        image, text, params = load_two_towers(path)
        layout = hf_models.two_towers(image, text)
    elif make is vision_tower:
        config, params = load_encoder(path)
        layout = hf_models.encoder(config)
        wanted = {of_version_4(name): tensor for name, tensor in wanted.items()}
    else:
        config, params = load_decoder(path)
        layout = hf_models.decoder(config)
    as_type = np.dtype(getattr(ml_dtypes, dtype, dtype))
    (tmp_path / "ours").mkdir()
    hf_models.write(tmp_path / "ours", layout, flatten_dict(params, sep="/"), as_type)
    assert stored(tmp_path / "ours") == wanted
