"""Imports pre-trained weights: `python -m hive_jax.import_weights`."""

import sys

from hive_jax.import_weights import main

if __name__ == "__main__":
    sys.exit(main())
