"""Exported probes, read by transformers and by this package."""

import dataclasses

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from helpers.tiny_weights import IMAGE, arrays

from hive_jax.export.classifier import export_classifier
from hive_jax.inference.encoder import load_encoder
from hive_jax.inference.model import load
from hive_jax.models.siglip import SiglipEncoder
from hive_jax.training.objectives import normalize_images

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("fresh_norm", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_an_exported_probe_loads_in_transformers_and_as_an_encoder(
    tmp_path, caplog, depth, fresh_norm
):
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    params = unflatten_dict(arrays(IMAGE), sep="/")
    rng = np.random.default_rng(1)
    probe = {"kernel": rng.normal(size=(24, 3)), "bias": rng.normal(size=3)}
    probe = {name: array.astype(np.float32) for name, array in probe.items()}
    path = str(tmp_path / "probe")
    fitted = {"classifier": probe}
    if fresh_norm:
        sizes = {"scale": 24, "bias": 24}
        fitted["norm"] = {n: rng.normal(size=s).astype("f4") for n, s in sizes.items()}
    export_classifier(path, IMAGE, params, depth, fitted, "abc", "hf_bilinear")
    encoder = load_encoder(path)
    assert f"{path}: left out the head classifier.bias, classifier.weight" in (
        caplog.text
    )
    assert encoder.config == dataclasses.replace(IMAGE, depth=depth, map_head=False)
    assert encoder.preprocessing == load(path).encoder.preprocessing == "hf_bilinear"
    if fresh_norm:
        norm = encoder.params["Transformer"]["encoder_norm"]
        for name, leaf in fitted["norm"].items():
            np.testing.assert_array_equal(norm[name], leaf)
    pixels = np.asarray(normalize_images(IMAGES))
    out = SiglipEncoder(encoder.config).apply({"params": encoder.params}, pixels)
    logits = np.asarray(out.tokens).mean(axis=1) @ probe["kernel"] + probe["bias"]
    model = transformers.AutoModelForImageClassification.from_pretrained(path).eval()
    with torch.no_grad():
        reference = model(torch.tensor(pixels).permute(0, 3, 1, 2)).logits
    np.testing.assert_allclose(logits, reference.numpy(), rtol=0, atol=1e-5)
