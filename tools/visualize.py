"""Draws what a run does: `python -m hive_jax.visualize`."""

import sys

from hive_jax.visualize import main

if __name__ == "__main__":
    sys.exit(main())
