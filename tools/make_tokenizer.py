"""Trains a tokenizer on a dataset: `python -m hive_jax.make_tokenizer`."""

import sys

from hive_jax.make_tokenizer import main

if __name__ == "__main__":
    sys.exit(main())
