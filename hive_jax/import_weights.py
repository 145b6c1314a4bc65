"""Imports pre-trained weights as a checkpoint that a run starts from.

PATH is a Hugging Face folder or hub id (SigLIP, SigLIP 2 of fixed resolution, a decoder
of a family in docs/weights.md) or a big_vision .npz. Tokenizer and image preprocessing
are imported too.
"""

import argparse
import sys

from hive_jax.console import report_errors, show
from hive_jax.models.presets import DECODERS

_EXAMPLES = """examples:
  python -m hive_jax.import_weights --encoder google/siglip-large-patch16-384 \\
      --decoder google/gemma-3-1b-pt --out weights
  python -m hive_jax.import_weights --encoder siglip.npz --decoder gemma2.npz \\
      --decoder_config gemma2_2b --tokenizer tokenizer.model --out weights
"""


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Imports weights; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hive_jax.import_weights",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--encoder", default="", metavar="PATH", help="image tower (default: none)")
    add("--decoder", default="", metavar="PATH", help="language model (default: none)")
    add("--out", required=True, help="folder to write")
    add(
        "--image_size",
        type=int,
        default=0,
        help="resize the position embedding to this image size (default: keep it)",
    )
    add("--tokenizer", default="", help="tokenizer (default: the decoder's)")
    add(
        "--decoder_config",
        choices=sorted(DECODERS),
        help="architecture of a Gemma 2 or 3 in a big_vision .npz, whose arrays do not "
        "show it (default: read from the weights)",
    )
    options = parser.parse_args(arguments)
    # Here, because importing JAX would delay --help.
    from hive_jax.training.import_weights import import_weights

    table = import_weights(
        options.encoder,
        options.decoder,
        options.out,
        image_size=options.image_size,
        tokenizer=options.tokenizer,
        decoder_config=DECODERS.get(options.decoder_config),
    )
    show(f"{table}\n{options.out}: start from it with --config.init={options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
