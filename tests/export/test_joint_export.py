"""The exported joint attention: masks, padding and caches, against hive_jax."""

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from hive_jax.export.components import COMPONENTS
from hive_jax.export.export import export
from hive_jax.models.hive import Hive

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(3, 500, (3, 9))
PIXELS = RNG.uniform(-1, 1, (3, 28, 28, 3)).astype(np.float32)
KINDS = (
    *("joint", "joint own", "joint of gemma2"),
    *("joint of llama3", "joint own of qwen2"),
)
# The image comes first, after three tokens, not at all.
SEES = np.array([[1] * 9, [0] * 3 + [1] * 6, [0] * 9], bool)


@pytest.fixture(scope="module", params=KINDS)
def models(runs, tmp_path_factory, request):
    """The exported model in torch, and the logits of hive_jax for inputs."""
    out = str(tmp_path_factory.mktemp("joint") / "out")
    report = export(runs(request.param), "hive", out, verify=False)
    component = COMPONENTS["hive"].from_folder(out, report)
    params = {"params": unflatten_dict(dict(component.arrays), sep="/")}
    hive = Hive(component.config)

    @jax.jit
    def logits(tokens, image_mask):
        hidden = hive.apply(params, PIXELS, tokens, image_mask)
        return hive.apply(params, hidden, method="logits")

    model = transformers.AutoModelForImageTextToText.from_pretrained(
        out, trust_remote_code=True, local_files_only=True
    )
    return model.eval(), logits


def inputs(tokens, sees):
    pixels = torch.tensor(PIXELS.transpose(0, 3, 1, 2))
    return {
        "input_ids": torch.tensor(tokens),
        "pixel_values": pixels,
        "image_mask": torch.tensor(sees),
    }


@torch.no_grad()
def test_text_before_an_image_and_samples_without_one(models):
    model, logits = models
    got = model(**inputs(TOKENS, SEES)).logits
    np.testing.assert_allclose(got, logits(TOKENS, SEES), atol=1e-4)


@torch.no_grad()
def test_a_cache_changes_nothing(models):
    """One token at a time after five, longer than the window of sliding layers."""
    model, logits = models
    out = model(**inputs(TOKENS[:, :5], SEES[:, :5]), use_cache=True)
    got = [out.logits]
    for step in range(5, 9):
        token = torch.tensor(TOKENS[:, step : step + 1])
        out = model(input_ids=token, past_key_values=out.past_key_values)
        got.append(out.logits)
    expected = logits(TOKENS, SEES)
    np.testing.assert_allclose(torch.cat(got, dim=1), expected, atol=1e-4)


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(models):
    model, logits = models
    expected = logits(TOKENS, SEES)
    tokens = np.concatenate([np.zeros((3, 2), int), TOKENS], axis=1)
    # Whether padding sees the image does not matter, where there is one.
    padding = np.broadcast_to(SEES.any(axis=1, keepdims=True), (3, 2))
    sees = np.concatenate([padding, SEES], axis=1)
    mask = torch.tensor(tokens > 0).long()
    got = model(
        **inputs(tokens, sees),
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
    ).logits
    np.testing.assert_allclose(got[:, 2:], expected, atol=1e-4)


def test_gradients_reach_the_connections(models):
    model, _ = models
    model.zero_grad()
    labels = inputs(TOKENS, SEES) | {"labels": torch.tensor(TOKENS)}
    model(**labels).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("projectors", "joint_attentions")):
            assert parameter.grad is not None and parameter.grad.any(), name
