"""Checks or converts a dataset: `python -m hive_jax.prepare_data`."""

import sys

from hive_jax.prepare_data import main

if __name__ == "__main__":
    sys.exit(main())
