"""Writes the parameters of a run as a big_vision .npz.

    python tools/export_big_vision.py --checkpoint workdir/stage3 --out encoder.npz
        --part img

Without --part all branches are written (img, llm, fusion, or img, txt, t, b).
"""

import argparse
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hive_jax.errors import CheckpointError, HiveError
from hive_jax.training.initial import restore_run
from hive_jax.weights.big_vision import save_npz


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="workdir of the run")
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument("--part", nargs="*", help="branches; default: all")
    args = parser.parse_args()
    try:
        _, params = restore_run(args.checkpoint)
        absent = sorted(set(args.part or ()) - set(params))
        if absent:
            raise CheckpointError(f"--part {absent}: the run holds {sorted(params)}")
        chosen = {part: params[part] for part in args.part or params}
        save_npz(args.out, jax.device_get(chosen))
    except HiveError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    count = sum(leaf.size for leaf in jax.tree.leaves(chosen))
    print(f"{args.out}: {', '.join(chosen)}, {count:,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
