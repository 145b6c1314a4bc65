"""Writes a part of a run for transformers, big_vision or PyTorch.

    python tools/export_hf.py --checkpoint workdir/stage3 --part encoder --out encoder

The folder is loaded back by its stock class and compared before it gets its name, where
torch is installed; hive_export.json in it says what was compared.
"""

import argparse
import sys
from pathlib import Path

from hive_jax.console import report_errors
from hive_jax.export.certificate import summary
from hive_jax.export.exporting import FORMATS, PARTS, TARGETS, export
from hive_jax.weights.safetensors import DTYPES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@report_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="workdir of the run")
    parser.add_argument("--part", required=True, choices=PARTS)
    parser.add_argument("--out", required=True, help="folder, or file, to write")
    parser.add_argument("--format", default="huggingface", choices=FORMATS)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument(
        "--target",
        default="v5",
        choices=TARGETS,
        help="version of transformers; matters for a vlm with Gemma 1 or 2",
    )
    parser.add_argument(
        "--newline_ends",
        action="store_true",
        help="the tokenizer's end token is the newline that ends answers; for lmms-eval",
    )
    parser.add_argument("--no_check", action="store_true", help="do not load it back")
    parser.add_argument(
        "--check_python", default="", help="another Python, with torch, to check with"
    )
    args = parser.parse_args()
    certificate = export(
        args.checkpoint,
        args.part,
        args.out,
        format=args.format,
        dtype=args.dtype,
        target=args.target,
        check=not args.no_check,
        python=args.check_python,
        newline_ends=args.newline_ends,
    )
    print(f"{args.out}: {args.part}, {args.dtype}")
    if certificate:
        print(summary(certificate["check"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
