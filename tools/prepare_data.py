"""Converts a set to ArrayRecord, or looks at every sample of it.

python tools/prepare_data.py --from llava:chat.json,images=images.zip --out prepared
python -m hive_jax.train --config configs/stage1.py --config.data.source=prepared:prepared

python tools/prepare_data.py check --from llava:chat.json,images=images.zip --out report
"""

import argparse
import functools
import os
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hive_jax.console import report_errors
from hive_jax.data.image_io import encode_png
from hive_jax.data.invalid import listed
from hive_jax.data.sources.array_record_writer import ConversionPlan, write_array_record
from hive_jax.data.sources.registry import SourceOptions, whole_source
from hive_jax.data.tokenizer import BUILTIN, load_tokenizer
from hive_jax.data.transforms import PREPROCESSING, decode
from hive_jax.data.validate import validate_source
from hive_jax.errors import ConfigError
from hive_jax.io import output_errors


@report_errors
def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    how = SourceOptions(args.size or 64, args.preprocessing)
    source = whole_source(args.source, how)
    return check(source, args) if args.command == "check" else convert(source, args)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "command", nargs="?", choices=("convert", "check"), default="convert"
    )
    parser.add_argument(
        "--from", dest="source", required=True, help="as in config.data.source"
    )
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--size", type=int, default=0, help="resize images to this square (PNG)"
    )
    parser.add_argument("--preprocessing", choices=PREPROCESSING, default="hf_bicubic")
    parser.add_argument("--shard-size", type=int, default=8192, help="samples")
    parser.add_argument("--tokenizer", default=BUILTIN, help="check: counts tokens")
    parser.add_argument("--num-tokens", type=int, default=77, help="check: of a sample")
    args = parser.parse_args(arguments)
    for name in ("threads", "shard_size", "num_tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    if args.size < 0:
        parser.error("--size must be 1 or more; without it images keep their size")
    return args


def convert(source, args: argparse.Namespace) -> int:
    """Writes --out, or goes on with it."""
    images = [args.size, args.preprocessing] if args.size else None
    plan = ConversionPlan(
        args.source, source.fingerprint, len(source), images, args.shard_size
    )
    resized = functools.partial(_resized, args.size, args.preprocessing)
    with tqdm(total=len(source), unit="sample") as bar:
        manifest = write_array_record(
            source,
            plan,
            Path(args.out),
            args.threads,
            resized if args.size else None,
            bar.update,
        )
    bad = manifest["bad"]
    print(f"{args.out}: {len(source)} samples, {sum(bad.values())} of them bad", end="")
    print(f": {listed(bad)}" if bad else "")
    return 0


def check(source, args: argparse.Namespace) -> int:
    """Reads all of --from and reports it in --out; 65 if any sample is bad."""
    out = _new_folder(args.out)
    tokenizer = load_tokenizer(args.tokenizer)
    with tqdm(total=len(source), unit="sample") as bar:
        found = validate_source(
            source, tokenizer, args.num_tokens, args.threads, bar.update
        )
    with output_errors(out):
        found.write(out)
    print(found.text())
    print(f"written to {out}: report.json, bad_samples.jsonl, tokens.png")
    return 65 if found.bad else 0


def _new_folder(path: str) -> Path:
    """Makes an empty folder that can be written; nothing is read before."""
    out = Path(path)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        empty = not any(out.iterdir())
        tempfile.TemporaryFile(dir=out).close()
    if not empty:
        raise ConfigError(f"{out} is not empty; choose another --out")
    return out


def _resized(size: int, preprocessing: str, content: bytes, where: str) -> bytes:
    return encode_png(decode(content, size, preprocessing, where))


if __name__ == "__main__":
    sys.exit(main())
