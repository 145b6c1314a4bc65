"""Asks a run about an image; without a question, for a caption."""

import argparse
import sys

from hive_jax.console import report_errors, show
from hive_jax.io import read_bytes

_EXAMPLES = """examples:
  python -m hive_jax.chat photo.jpg "What colour is the star?" --run workdir/vlm2
  python -m hive_jax.chat photo.jpg --run workdir/stage3
"""


@report_errors
def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # Here, because importing JAX would delay --help.
    from hive_jax.data.transforms import decode
    from hive_jax.inference.generate import Decoding, Prompt
    from hive_jax.inference.model import load
    from hive_jax.training.compilation_cache import enable_compilation_cache

    decoding = Decoding(
        options.max_new_tokens, options.temperature, options.top_p, options.seed
    )
    content = read_bytes(options.image)
    enable_compilation_cache()
    model = load(options.run)
    encoder = model.encoder
    size, preprocessing = encoder.config.image_size, encoder.preprocessing
    image = decode(content, size, preprocessing, options.image)
    history = ()
    for number, question in enumerate(options.question or [""]):
        prompt = Prompt(question, image, number, history)
        (answer,) = model.generator(decoding)([prompt])
        show(answer or "(empty: the model ended its answer at once)")
        if model.chat:
            history += ((question, answer),)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hive_jax.chat",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("image", help="image file")
    add(
        "question",
        nargs="*",
        default=[""],
        help="questions (default: a caption); with a chat template, one conversation",
    )
    add(
        "--run",
        required=True,
        metavar="PATH",
        help="workdir of a run, or an exported vlm or hive",
    )
    add("--max_new_tokens", type=int, default=64, help="limit (default: 64)")
    add("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    add("--top_p", type=float, default=1.0, help="of nucleus sampling (default: 1)")
    add("--seed", type=int, default=0, help="of sampling (default: 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
