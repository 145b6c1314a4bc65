"""An exported folder checked again, with another version of transformers."""

from pathlib import Path

from hive_jax.data.tokenizer import Tokenizer
from hive_jax.errors import CheckpointError
from hive_jax.export import certificate
from hive_jax.io import read_json
from hive_jax.weights import hf_models
from hive_jax.weights.safetensors import CERTIFICATE
from hive_jax.weights.sources import OPEN


def recheck(folder: str, python: str = "") -> dict:
    """Compares the stock class's outputs with ours, from the same files.

    Args:
      folder: of tools/export_hf.py.
      python: an interpreter with torch and transformers; "" for this one.

    Returns:
      As `certificate.check`.

    Raises:
      MissingInputError, CheckpointError: it is no such folder, was changed since, or
        the outputs differ.
    """
    about = read_json(Path(folder) / CERTIFICATE, error=CheckpointError)
    part = about.get("part")
    if part not in OPEN:
        raise CheckpointError(f"{folder}/{CERTIFICATE} names the part {part!r}")
    found = OPEN[part](folder)  # compares the other files with their hashes
    arrays = dict(found.leaves())
    if part == "vlm" and about.get("target") == "v4":
        arrays = hf_models.fold_embedding_scale(arrays, found.config, back=True)
    tokenizer = Path(folder) / "tokenizer.json"
    return certificate.check(
        Path(folder),
        part,
        found.config,
        arrays,
        preprocessing=found.preprocessing,
        tokenizer=Tokenizer(tokenizer) if tokenizer.is_file() else None,
        image_token_id=about.get("image_token", {}).get("id"),
        python=python,
    )
