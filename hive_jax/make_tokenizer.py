"""Trains a tokenizer on the texts of a dataset: a byte-level BPE, as tokenizer.json."""

import argparse
import sys

from tqdm import tqdm

from hive_jax.console import report_errors, show
from hive_jax.data.invalid import format_counts
from hive_jax.data.sources.base import SourceOptions
from hive_jax.data.sources.registry import whole_source
from hive_jax.data.train_tokenizer import MIN_VOCAB_SIZE, read_texts, train_tokenizer
from hive_jax.io import atomic_write, require_absent

_EXAMPLES = """examples:
  python -m hive_jax.make_tokenizer --out tokenizer.json \\
      --from llava:chat.json,images=images.zip,form=chat
  python -m hive_jax.make_tokenizer --vocab_size 2048 --out tokenizer.json \\
      --from table:captions.csv,images=images.zip,image=file,text=caption
"""


@report_errors
def main(arguments: list[str] | None = None) -> int:
    args = _parse(arguments)
    require_absent(args.out)
    # No image is opened; 64 and "hf_bicubic" are not used then.
    options = SourceOptions(64, "hf_bicubic", with_image=False)
    source = whole_source(args.source, options)
    with tqdm(total=len(source), unit="sample") as bar:
        texts, bad = read_texts(source, bar.update)
    tokenizer = train_tokenizer(texts, args.vocab_size)
    with atomic_write(args.out, overwrite=False) as path:
        tokenizer.save(str(path))
    show(
        f"{args.out}: {tokenizer.get_vocab_size()} tokens of {len(texts)} texts", end=""
    )
    show(f"; {sum(bad.values())} samples are bad: {format_counts(bad)}" if bad else "")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hive_jax.make_tokenizer",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--from", dest="source", required=True, help="dataset, as config.data.source"
    )
    parser.add_argument("--out", required=True, help="the tokenizer.json to write")
    parser.add_argument(
        "--vocab_size",
        type=int,
        default=1024,
        help="most tokens, all bytes included; default: %(default)s",
    )
    args = parser.parse_args(arguments)
    if args.vocab_size < MIN_VOCAB_SIZE:
        parser.error(
            f"--vocab_size must be {MIN_VOCAB_SIZE} or more: all bytes are in it"
        )
    return args


if __name__ == "__main__":
    sys.exit(main())
