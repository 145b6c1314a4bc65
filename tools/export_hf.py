"""Exports a component of a trained model; the same as python -m hive_jax.export_hf.

python tools/export_hf.py --run workdir/stage3 --component encoder --out encoder
python tools/export_hf.py verify encoder
"""

import sys

from hive_jax.export_hf import main

if __name__ == "__main__":
    sys.exit(main())
