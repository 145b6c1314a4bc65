"""Converts a dataset to ArrayRecord, or checks every sample of it."""

import argparse
import dataclasses
import functools
import os
import sys
from pathlib import Path

from tqdm import tqdm

from hive_jax.console import report_errors, show
from hive_jax.data.dataset_report import DatasetReport, SampleSettings
from hive_jax.data.image_io import encode_png
from hive_jax.data.invalid import format_counts
from hive_jax.data.sources.array_record_writer import (
    plan_conversion,
    write_array_record,
)
from hive_jax.data.sources.base import DataSource, SourceOptions
from hive_jax.data.sources.registry import checked_sources, whole_source
from hive_jax.data.sources.split import train_validation_splits
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.data.transforms import PREPROCESSING, decode
from hive_jax.errors import ConfigError, DataError
from hive_jax.io import list_names, require_local, require_writable

_EXAMPLES = """examples:
  python -m hive_jax.prepare_data check --out report \\
      --from llava:chat.json,images=images.zip
  python -m hive_jax.prepare_data check --out report --config stage3 \\
      --config.data.source=llava:chat.json,images=images.zip
  python -m hive_jax.prepare_data --out prepared --size 64 \\
      --from llava:chat.json,images=images.zip
  python -m hive_jax.train --config stage1 --config.data.source=prepared:prepared
"""
_PREPROCESSING = "hf_bicubic"  # of images that are stored resized
_CONFIG = "stage1"  # of the run that a dataset is checked for
# Options of one command alone, which mean nothing for the other.
_OF_CHECK, _OF_CONVERT = ("config", "tokenizer", "num_tokens"), ("shard_size",)


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Converts or checks a dataset; returns the exit code."""
    args = _parse(arguments)
    return check(args) if args.command == "check" else convert(args)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hive_jax.prepare_data",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=("convert", "check"),
        default="convert",
        help="default: convert",
    )
    parser.add_argument(
        "--from",
        dest="source",
        help="dataset, as config.data.source; check: default that of --config",
    )
    parser.add_argument("--out", required=True, help="folder to create")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="default: one a core"
    )
    parser.add_argument(
        "--size",
        type=int,
        help="resize images to squares of this size, as PNG; default: keep the files; "
        "check: default that of --config",
    )
    parser.add_argument(
        "--preprocessing",
        choices=PREPROCESSING,
        help=f"how images become pixels in training; default: {_PREPROCESSING}; check: that of "
        "--config",
    )
    parser.add_argument("--shard_size", type=int, help="samples; default: 8192")
    parser.add_argument(
        "--config",
        metavar="FILE[:ARGUMENTS]",
        help="for check: config of the run that will train on the dataset, with any key "
        f"as --config.KEY=VALUE; default: {_CONFIG}",
    )
    parser.add_argument("--tokenizer", help="for check; default: that of --config")
    parser.add_argument(
        "--num_tokens",
        type=int,
        help="of a sample in training, for check; default: that of --config",
    )
    args, args.overrides = parser.parse_known_args(arguments)
    is_check = args.command == "check"
    for name in _OF_CONVERT if is_check else _OF_CHECK:
        if getattr(args, name) is not None:
            other = "convert" if is_check else "check"
            parser.error(f"--{name} is for {other}; leave it out")
    if not is_check:
        if args.overrides:
            parser.error(f"unrecognized arguments: {' '.join(args.overrides)}")
        if args.source is None:
            parser.error("--from is missing, the dataset to convert")
        if args.preprocessing and args.size is None:
            parser.error("--preprocessing needs --size: without it files are kept")
    for name in ("threads", "shard_size", "num_tokens", "size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    return args


def convert(args: argparse.Namespace) -> int:
    """Writes --out as array records, or resumes an interrupted conversion.

    Args:
      args: the parsed command line.

    Returns:
      The exit status, 0.
    """
    # Shards are written in place, and resumed.
    require_local(args.out, "--out")
    preprocessing = args.preprocessing or _PREPROCESSING
    options = SourceOptions(args.size or 64, preprocessing)
    source = whole_source(args.source, options)
    images = [args.size, preprocessing] if args.size else None
    plan = plan_conversion(args.source, source, images, args.shard_size or 8192)
    resize = functools.partial(_resize, args.size, preprocessing)
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
    if source.notes:
        show("\n".join(source.notes))
    return 0


def check(args: argparse.Namespace) -> int:
    """Reads the whole dataset as the run of --config does; writes a report to --out.

    Args:
      args: the parsed command line.

    Returns:
      The exit status: 65 if any sample is invalid, else 0.

    Raises:
      ConfigError: --out is not empty, or the config has an invalid value.
      OutputError: --out cannot be written.
    """
    # Here, because importing JAX would delay --help.
    from hive_jax.data.validate import validate_source

    out = require_writable(args.out)
    if list_names(out):
        raise ConfigError(f"{out} is not empty; choose another --out")
    config = _run_config(args)
    data, image_size = config.data, args.size or config.model.image_size
    options = SourceOptions(
        image_size, data.preprocessing, data.seed, with_image=config.uses_image
    )
    # All samples once, whatever their weights in the run.
    sources = [
        dataclasses.replace(one, weight=None) for one in checked_sources(data.source)
    ]
    source = whole_source(sources, options)
    settings = SampleSettings(
        data.tokenizer,
        load_tokenizer(data.tokenizer),
        data.num_tokens,
        image_size,
        data.preprocessing,
    )
    with tqdm(total=len(source), unit="sample") as bar:
        report = validate_source(source, settings, args.threads, bar.update)
    report.write(out)
    show(report.to_text())
    for problem in _problems(report, source, config):
        show(
            f"a run of --config {args.config or _CONFIG} ends with an error: {problem}"
        )
    show(f"written to {out}: report.json, bad_samples.jsonl, tokens.png")
    return 65 if report.invalid else 0


def _run_config(args: argparse.Namespace):
    """The complete config of the run that will train on the dataset."""
    # The code of training takes seconds to import, which a conversion does not need.
    from hive_jax.config.cli import read_config
    from hive_jax.training.resolve import resolve_config

    config = read_config(args.config or _CONFIG, args.overrides)
    changes = {
        "source": args.source,
        "tokenizer": args.tokenizer,
        "num_tokens": args.num_tokens,
        "preprocessing": args.preprocessing,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, **changes)
    )
    config.validate()
    return resolve_config(config).config


def _problems(report: DatasetReport, source: DataSource, config) -> list[str]:
    """What would end a run on this dataset."""
    problems, limit = [], config.data.max_bad_fraction
    if len(report.invalid) > limit * report.samples:
        problems.append(
            f"{len(report.invalid)} of {report.samples} samples cannot be used; "
            f"data.max_bad_fraction allows {limit:.2%}"
        )
    if checked_sources(config.data.source)[0].kind != "tabletop":
        try:
            train_validation_splits([source], [config.data.validation_size])
        except DataError as error:
            problems.append(str(error))
    return problems


def _resize(size: int, preprocessing: str, content: bytes, where: str) -> bytes:
    return encode_png(decode(content, size, preprocessing, where))


if __name__ == "__main__":
    sys.exit(main())
