"""Packaging. `pip install -e .` for training; extras add what only some need."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="hive_jax",
    version="0.1.0",
    description=(
        "Hierarchical pre-training of vision encoders with large language models, "
        "in JAX/Flax"
    ),
    long_description=Path(__file__).with_name("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["hive_jax", "hive_jax.*"]),
    package_data={"hive_jax": ["assets/*"]},
    install_requires=[
        "absl-py",
        "flax",
        "jax",
        "ml_collections",
        "numpy",
        "optax",
        # 0.12.3 writes commit markers; the training loop relies on what 0.12 does
        # after a failed save.
        "orbax-checkpoint>=0.12.3",
        "pillow",
        "tensorboardX",
        "tokenizers",
        "tqdm",
    ],
    extras_require={
        "gpu": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "sentencepiece": ["sentencepiece>=0.2.3"],
        "test": [
            "pytest",
            "ruff",
            "sentencepiece>=0.2.3",
            # The registry's other builds bring several GB of CUDA along.
            "torch==2.13.0; python_version < '3.12'",
            "transformers>=5.3",
        ],
    },
)
