"""Writes MME, GQA, OK-VQA and ScienceQA of the built-in world, in their own formats.

python tools/make_tabletop.py --out benchmarks
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hive_jax.data.tabletop.benchmarks import write_benchmarks
from hive_jax.errors import reporting
from hive_jax.evaluation.benchmarks.registry import read_task


@reporting
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--count", type=int, default=350, help="images of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=64, help="image size in pixels")
    args = parser.parse_args(arguments)
    write_benchmarks(args.out, args.count, args.seed, args.size)
    for folder in sorted(Path(args.out).iterdir()):
        examples = read_task(folder.name, args.out)  # as an evaluation will
        images = {e.image for e in examples if e.image is not None}
        print(f"{folder}: {len(examples)} questions, {len(images)} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
