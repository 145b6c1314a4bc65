"""Makes a checkpoint of other people's weights, for --config.init=DIR.

    python tools/import_weights.py --encoder google/siglip-large-patch16-384
        --decoder google/gemma-3-1b-pt --out weights

PATH is a Hugging Face folder or hub id (SigLIP, SigLIP 2 of fixed resolution, Gemma 1,
2, 3), or a big_vision .npz. The tokenizer and the image preprocessing come along.
"""

import argparse
import sys
from pathlib import Path

from hive_jax.console import report_errors
from hive_jax.models.presets import DECODERS
from hive_jax.training.import_weights import import_weights

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@report_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="", metavar="PATH")
    parser.add_argument("--decoder", default="", metavar="PATH")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--image_size", type=int, default=0, help="resize the position embedding"
    )
    parser.add_argument(
        "--tokenizer", default="", help="where the decoder has none beside it"
    )
    parser.add_argument(
        "--decoder_config",
        choices=sorted(DECODERS),
        help="what a big_vision .npz of a Gemma 2 does not say",
    )
    args = parser.parse_args()
    table = import_weights(
        args.encoder,
        args.decoder,
        args.out,
        image_size=args.image_size,
        tokenizer=args.tokenizer,
        decoder_config=DECODERS.get(args.decoder_config),
    )
    print(f"{table}\n{args.out}: start from it with --config.init={args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
