"""Released SigLIPs in their folders: texts and images in, transformers' embeddings out."""

import dataclasses
import json

import huggingface_hub
import numpy as np
import pytest
from helpers.exported_runs import run_config
from helpers.llava_sets import photograph
from helpers.random_runs import save_random
from helpers.tower_tokenizers import odd_texts, write_siglip, write_siglip2

import hive_jax
from hive_jax.config import DataConfig, ProbeConfig
from hive_jax.errors import CheckpointError, DataError
from hive_jax.evaluation import zero_shot
from hive_jax.export.export import export

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

from helpers.huggingface_models import VISION, randomised, save

TEXTS = odd_texts(50)
IMAGES = [photograph(number) for number in range(6)]


def write_folder(folder, siglip2: bool):
    """A random SigLIP with its processor files; returns the model and transformers'
    tokenizer."""
    write_tokenizer = write_siglip2 if siglip2 else write_siglip
    write_tokenizer(folder)
    text = VISION | {"vocab_size": 400, "max_position_embeddings": 64}
    config = transformers.SiglipConfig(
        text_config=text | {"projection_size": 32},
        vision_config=VISION,
        attn_implementation="eager",
    )
    model = randomised(transformers.SiglipModel(config))
    save(model, folder)
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "resample": 2 if siglip2 else 3,
        "size": {"height": 28, "width": 28},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    name = "Siglip2Tokenizer" if siglip2 else "SiglipTokenizer"
    return model, getattr(transformers, name).from_pretrained(folder)


def normalized(features) -> np.ndarray:
    features = getattr(features, "pooler_output", features).detach().numpy()
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


@pytest.mark.filterwarnings("ignore:This sequence already has </s>")
@pytest.mark.parametrize("siglip2", [False, True])
def test_embeddings_of_a_folder_equal_transformers(tmp_path, siglip2):
    model, tokenizer = write_folder(tmp_path / "weights", siglip2)
    loaded = hive_jax.load(tmp_path / "weights")
    options = {"padding": "max_length", "max_length": 64, "truncation": True}
    tokens = tokenizer(TEXTS, return_tensors="pt", **options)["input_ids"]
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "weights")
    pixels = processor(images=IMAGES, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        texts = normalized(model.get_text_features(input_ids=tokens))
        images = normalized(model.get_image_features(pixel_values=pixels))
    np.testing.assert_allclose(loaded.embed_texts(TEXTS), texts, atol=1e-5)
    np.testing.assert_allclose(loaded.embed_images(IMAGES), images, atol=1e-5)
    with pytest.raises(DataError, match=r"texts is 'a text'; expected a sequence"):
        loaded.embed_texts("a text")


@pytest.mark.parametrize("siglip2", [False, True])
def test_zero_shot_by_hub_id_equals_transformers(tmp_path, monkeypatch, siglip2):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cached = tmp_path / "models--acme--tower"
    model, tokenizer = write_folder(cached / "snapshots" / ("0" * 40), siglip2)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0" * 40)
    captions = {"Owl": "a photo of an Owl", "hot_dog": "a photo of a hot dog"}
    for number, image in enumerate(IMAGES):
        folder = tmp_path / "classes" / [*captions][number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    config = ProbeConfig(probe="zero_shot", test=f"folder:{tmp_path}/classes")
    loaded = hive_jax.load("acme/tower")
    result = zero_shot.evaluate_towers(config, loaded, tmp_path / "out")
    assert result["texts"]["lower_case"] and result["texts"]["num_tokens"] == 64
    rows = (tmp_path / "out/zero_shot/samples.jsonl").read_text().splitlines()
    outputs = [json.loads(row)["output"] for row in rows]
    options = {"padding": "max_length", "max_length": 64, "truncation": True}
    tokens = tokenizer([*captions.values()], return_tensors="pt", **options)
    with torch.no_grad():
        texts = normalized(model.get_text_features(input_ids=tokens["input_ids"]))
    # The folder's order: all of one class, then all of the other.
    images = loaded.embed_images(IMAGES[::2] + IMAGES[1::2])
    assert outputs == [[*captions][i] for i in (images @ texts.T).argmax(axis=1)]
    config = dataclasses.replace(config, probe="retrieval")
    result = zero_shot.evaluate_towers(config, loaded, tmp_path / "out")
    assert result["texts"]["end_token"] in ("</s>", "<eos>")


def test_exported_towers_read_texts_as_their_run(tmp_path):
    workdir = str(tmp_path / "run")
    save_random(run_config("contrastive"), workdir)
    export(workdir, "two_towers", str(tmp_path / "folder"), verify=False)
    export(workdir, "two_towers", str(tmp_path / "t.npz"), format="big_vision")
    expected = hive_jax.load(workdir).embed_texts(TEXTS[1:])
    for path in ("folder", "t.npz"):
        got = hive_jax.load(tmp_path / path).embed_texts(TEXTS[1:])
        np.testing.assert_array_equal(got, expected)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "folder")
    assert type(processor).__name__ == "SiglipProcessor"
    inputs = processor(
        text=TEXTS[1:], padding="max_length", truncation=True, return_tensors="pt"
    )
    model = transformers.AutoModel.from_pretrained(tmp_path / "folder")
    with torch.no_grad():
        texts = normalized(model.get_text_features(**inputs))
    np.testing.assert_allclose(expected, texts, atol=1e-5)


def test_tokenizer_of_other_weights_is_refused(tmp_path):
    write_folder(tmp_path / "weights", siglip2=False)
    (tmp_path / "weights/spiece.model").unlink()
    loaded = hive_jax.load(tmp_path / "weights")
    with pytest.raises(
        CheckpointError, match="has no tokenizer; expected one of token"
    ):
        loaded.embed_texts(["a"])
    write_siglip2(tmp_path / "larger")
    larger = json.loads((tmp_path / "larger/tokenizer.json").read_text())
    larger["added_tokens"].append(
        {**larger["added_tokens"][0], "id": 400, "content": "<more>"}
    )
    (tmp_path / "larger/tokenizer.json").write_text(json.dumps(larger))
    data = DataConfig(tokenizer=str(tmp_path / "larger"), preprocessing="hf_bicubic")
    config = dataclasses.replace(loaded.config, data=data)
    loaded = dataclasses.replace(loaded, config=config)
    with pytest.raises(CheckpointError, match="token id 400; expected ids below 4"):
        loaded.embed_texts(["<more>"])
