"""Causes faults on purpose, and counts what comes of them; see docs/reliability.md.

python tools/faults.py kill --count 20
python tools/faults.py all
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # tools/ itself is there, not the folder above it.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools.fault_suite.command import main

    sys.exit(main())
