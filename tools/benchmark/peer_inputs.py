"""What all peers start from: the same random weights and the same batch, in files."""

import shutil
from pathlib import Path

import numpy as np

import hive_jax
from hive_jax.config import RunConfig
from hive_jax.data.batch import Batch
from hive_jax.errors import ConfigError
from hive_jax.io import atomic_dir
from hive_jax.models.config import HiveConfig
from hive_jax.training.objectives import names_under_all_fusions
from hive_jax.training.optimizer import assign_rules, trains
from hive_jax.weights import hf_models, mapping
from hive_jax.weights.mapping import param_shapes
from tools.benchmark.cases import Size

_CODE = Path(hive_jax.__path__[0]) / "export/torch"


def layout(model: HiveConfig) -> hf_models.Layout:
    """Returns the layout of the transformers class for a model.

    The last token of the vocabulary stands for the image.
    """
    if model.fusion_kind.export_kind == "vlm":
        return hf_models.vlm(model, model.decoder.vocab_size - 1)
    return hf_models.hive(model)


def write_weights(folder: Path, model: HiveConfig, seed: int = 0) -> None:
    """Writes random float32 weights of a model as a Hugging Face folder.

    Args:
      folder: to create.
      model: config of the model.
      seed: of the weights.

    Raises:
      CheckpointError: no class of transformers computes this model.
      OutputError: the folder exists, or cannot be written.
    """
    hf_layout = layout(model)
    arrays = random_params(param_shapes(model), seed)
    with atomic_dir(folder) as temporary:
        hf_models.write(temporary, hf_layout, arrays, np.dtype(np.float32))
        if model.fusion_kind.export_kind == "hive":
            for path in _CODE.glob("*_hive.py"):
                # The modeling code of an export: what users run is what is timed.
                shutil.copyfile(path, temporary / path.name)


def random_params(shapes: dict[str, tuple[int, ...]], seed: int) -> dict:
    """Returns random float32 parameters by name, none of them zero.

    Non-zero gates, biases and norm scales make every parameter count in the loss, and
    the scale keeps activations of the order of one.

    Args:
      shapes: shape of each parameter, by name.
      seed: of the values.
    """
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in shapes.items():
        params[name] = rng.standard_normal(shape, np.float32)
        # The last axis stands for the fan-in, which it is up to a factor.
        params[name] *= np.float32(shape[-1] ** -0.5)
        if name.endswith("/scale") and name.startswith(("img/", "fusion/projector/")):
            params[name] += 1  # a LayerNorm; Gemma's norms add the one themselves
    return params


def random_batch(size: Size, seed: int = 0) -> Batch:
    """Returns a batch of noise images with captions of random tokens, without padding.

    All tokens but the first are supervised.

    Args:
      size: batch size, text length, image size and vocabulary.
      seed: of the values.
    """
    rng = np.random.default_rng(seed)
    spec = Batch.spec(size.batch_size, size.num_tokens, size.encoder.image_size)
    text = spec.tokens.shape
    target = np.ones(text, bool)
    # Nothing predicts the first token.
    target[:, 0] = False
    return Batch(
        image=rng.integers(0, 256, spec.image.shape, np.uint8),
        # Without the last one, which stands for the image: see `layout`.
        tokens=rng.integers(0, size.decoder.vocab_size - 1, text, np.int32),
        target=target,
        image_mask=np.ones(text, bool),
    )


def write_batch(path: Path, batch: Batch) -> None:
    """Writes the fields of a batch as an .npz.

    Args:
      path: file to write.
      batch: without tags.
    """
    fields = {name: value for name, value in vars(batch).items() if value is not None}
    np.savez(path, **fields)


def multipliers(run: RunConfig) -> dict[str, float | None]:
    """Returns tensor name -> learning rate multiplier, None for a frozen tensor.

    Raises:
      ConfigError: the rules do not fit the model, name some layers of a stack, or train
        the token embeddings.
    """
    shapes = param_shapes(run.model)
    spec = Batch.spec(1, run.data.num_tokens, run.model.encoder.image_size)
    rules = assign_rules(shapes, run.rules, lambda: names_under_all_fusions(run, spec))
    partial = [rule.pattern for rule in rules.values() if rule.layers]
    if partial:
        raise ConfigError(
            f"rule {partial[0]!r} trains some layers of a stack; the peers take rules "
            "without `layers`"
        )
    if trains(rules["llm/embedder/input_embedding"]):
        raise ConfigError("the peers do not train the token embeddings; freeze them")
    # Tensors have the factor of the parameter that they are a slice of.
    slices = mapping.tensor_slices(layout(run.model).rows, shapes)
    return {one.tensor_name: rules[one.param_name].multiplier for one in slices}
