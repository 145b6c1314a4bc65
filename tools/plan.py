"""Plans a run on any machine: `python -m hive_jax.plan`."""

import sys

from hive_jax.plan import main

if __name__ == "__main__":
    sys.exit(main())
