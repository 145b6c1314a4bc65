"""Asks a run about an image.

    python -m hive_jax.chat photo.jpg "What colour is the star?" --init workdir/vlm2

Without a question it says what it was trained to say of an image: a caption.
"""

import argparse
import sys
from pathlib import Path

from hive_jax.console import report_errors
from hive_jax.data.transforms import decode
from hive_jax.errors import MissingInputError
from hive_jax.evaluation.evaluating import make_generator
from hive_jax.evaluation.generate import Decoding, Prompt
from hive_jax.evaluation.subject import open_run
from hive_jax.training import runtime


@report_errors
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m hive_jax.chat",
    )
    parser.add_argument("image", help="an image file")
    parser.add_argument("question", nargs="*", default=[""], help="one or several")
    parser.add_argument("--init", required=True, help="workdir of a run")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    decoding = Decoding(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    content = _content(args.image)
    runtime.enable_compilation_cache()
    subject = open_run(args.init)
    generator = make_generator(subject, decoding)
    image = decode(
        content, generator.image_size, subject.config.data.preprocessing, args.image
    )
    for number, question in enumerate(args.question or [""]):
        (answer,) = generator([Prompt(question, image, number)])
        print(answer)
    return 0


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
