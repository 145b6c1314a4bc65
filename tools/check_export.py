"""Checks an exported folder again, for instance with another transformers.

python tools/check_export.py encoder --python ~/transformers4/bin/python
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hive_jax.console import report_errors
from hive_jax.export.certificate import summary
from hive_jax.export.recheck import recheck


@report_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="+", help="of tools/export_hf.py")
    parser.add_argument("--python", default="", help="with torch and transformers")
    args = parser.parse_args()
    for folder in args.folder:
        print(f"{folder}: {summary(recheck(folder, args.python))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
