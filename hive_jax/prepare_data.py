"""Converts a dataset to ArrayRecord, or checks every sample of it."""

import argparse
import functools
import os
import sys
from pathlib import Path

from tqdm import tqdm

from hive_jax.console import report_errors, show
from hive_jax.data.image_io import encode_png
from hive_jax.data.invalid import format_counts
from hive_jax.data.sources.array_record_writer import (
    plan_conversion,
    write_array_record,
)
from hive_jax.data.sources.base import DataSource, SourceOptions
from hive_jax.data.sources.registry import whole_source
from hive_jax.data.tokenizer import BUILTIN, load_tokenizer
from hive_jax.data.transforms import PREPROCESSING, decode
from hive_jax.data.validate import validate_source
from hive_jax.errors import ConfigError
from hive_jax.io import require_writable

_EXAMPLES = """examples:
  python -m hive_jax.prepare_data check --out report \\
      --from llava:chat.json,images=images.zip
  python -m hive_jax.prepare_data --out prepared --size 64 \\
      --from llava:chat.json,images=images.zip
  python -m hive_jax.train --config stage1 --config.data.source=prepared:prepared
"""


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Converts or checks a dataset; returns the exit code."""
    args = _parse(arguments)
    options = SourceOptions(args.size or 64, args.preprocessing)
    source = whole_source(args.source, options)
    return check(source, args) if args.command == "check" else convert(source, args)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hive_jax.prepare_data",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=("convert", "check"),
        default="convert",
        help="default: convert",
    )
    parser.add_argument(
        "--from", dest="source", required=True, help="dataset, as config.data.source"
    )
    parser.add_argument("--out", required=True, help="folder to create")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="default: one a core"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=0,
        help="resize images to squares of this size, as PNG; default: keep the files",
    )
    parser.add_argument(
        "--preprocessing",
        choices=PREPROCESSING,
        default="hf_bicubic",
        help="how images become pixels in training; default: %(default)s",
    )
    parser.add_argument(
        "--shard_size", type=int, default=8192, help="samples; default: %(default)s"
    )
    parser.add_argument(
        "--tokenizer", default=BUILTIN, help="for check; default: %(default)s"
    )
    parser.add_argument(
        "--num_tokens",
        type=int,
        default=77,
        help="of a sample in training, for check; default: %(default)s",
    )
    args = parser.parse_args(arguments)
    for name in ("threads", "shard_size", "num_tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    if args.size < 0:
        parser.error("--size must be 1 or more; without it images keep their size")
    return args


def convert(source: DataSource, args: argparse.Namespace) -> int:
    """Writes --out as array records, or resumes an interrupted conversion.

    Args:
      source: the dataset to convert.
      args: the parsed command line.

    Returns:
      The exit status, 0.
    """
    images = [args.size, args.preprocessing] if args.size else None
    plan = plan_conversion(args.source, source, images, args.shard_size)
    resize = functools.partial(_resize, args.size, args.preprocessing)
    with tqdm(total=len(source), unit="sample") as bar:
        manifest = write_array_record(
            source,
            plan,
            Path(args.out),
            args.threads,
            resize if args.size else None,
            bar.update,
        )
    bad = manifest["bad"]
    show(f"{args.out}: {len(source)} samples, {sum(bad.values())} of them bad", end="")
    show(f": {format_counts(bad)}" if bad else "")
    return 0


def check(source: DataSource, args: argparse.Namespace) -> int:
    """Reads the whole dataset and writes a report of it to --out.

    Args:
      source: the dataset to validate.
      args: the parsed command line.

    Returns:
      The exit status: 65 if any sample is invalid, else 0.

    Raises:
      ConfigError: --out is not empty.
      OutputError: --out cannot be written.
    """
    out = require_writable(args.out)
    if any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose another --out")
    tokenizer = load_tokenizer(args.tokenizer)
    with tqdm(total=len(source), unit="sample") as bar:
        report = validate_source(
            source,
            tokenizer,
            args.num_tokens,
            args.threads,
            bar.update,
            args.preprocessing,
        )
    report.write(out)
    show(report.to_text())
    show(f"written to {out}: report.json, bad_samples.jsonl, tokens.png")
    return 65 if report.invalid else 0


def _resize(size: int, preprocessing: str, content: bytes, where: str) -> bytes:
    return encode_png(decode(content, size, preprocessing, where))


if __name__ == "__main__":
    sys.exit(main())
