"""Pictures of what a run does: gradients, attention, features, curves.

    python tools/visualize.py --init workdir/stage3 --out pictures
    python tools/visualize.py --init RUN --image photo.jpg --caption "a dog on a beach"

Without an image it draws scenes of the built-in world; without --init the newest run.
"""

import argparse
import sys
from pathlib import Path

from hive_jax.analysis.planted import planted_check
from hive_jax.analysis.shown import shown_file, shown_scenes
from hive_jax.analysis.visualizing import FIGURES, newest_run, visualize
from hive_jax.console import parse_unique_paths, report_errors, text_table
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.errors import ConfigError
from hive_jax.evaluation.subject import open_run
from hive_jax.io import write_json
from hive_jax.training import runtime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@report_errors
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--init", help="workdir of a run; default: the newest")
    parser.add_argument("--image", help="an image file; default: built-in scenes")
    parser.add_argument("--caption", default="", help="what is said of the image")
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--out", default="pictures", help="folder to write")
    parser.add_argument(
        "--base", default="builtin:tabletop_siglip", help="encoder to compare with"
    )
    parser.add_argument(
        "--beside",
        nargs="*",
        default=[],
        metavar="NAME=RUN",
        help="runs of other fusions, for the gradient flow at equal towers",
    )
    parser.add_argument(
        "--curves", nargs="*", default=[], metavar="NAME=RUN", help="default: this run"
    )
    parser.add_argument(
        "--planted",
        type=int,
        default=0,
        metavar="N",
        help="measure attention and gradients on N scenes of one toy, and of two",
    )
    args = parser.parse_args(arguments)
    runtime.enable_compilation_cache()
    if args.caption and not args.image:
        raise ConfigError("--caption is of an image; expected --image too")
    if args.planted < 0:
        raise ConfigError(f"--planted is {args.planted}; expected 0 or more")
    init = args.init or newest_run()
    subject = open_run(init)
    if args.image:
        shown = [shown_file(args.image, args.caption, subject.config)]
    elif args.scenes < 1:
        raise ConfigError(f"--scenes is {args.scenes}; expected 1 or more")
    else:
        shown = shown_scenes(subject.config, args.scenes)
    found = visualize(
        subject,
        shown,
        args.out,
        base=args.base,
        beside=parse_unique_paths(args.beside),
        curves=parse_unique_paths(args.curves) or {subject.config.name: init},
    )
    if args.planted:
        tokenizer = load_tokenizer(subject.config.data.tokenizer)
        one = planted_check(subject.config, subject.params, tokenizer, args.planted)
        found["planted"] = vars(one)
        write_json(Path(args.out) / FIGURES, found)
        rows = [
            (
                depth,
                f"{ratio:.2f}",
                f"{one.found[depth]:.1%}",
                f"{one.apart[depth]:.1%}",
            )
            for depth, ratio in one.attention.items()
        ]
        header = ("depth", "times a patch of the toy", "more in", "own toy of two")
        print(text_table(header, rows))
    for kind, files in found["pictures"].items():
        print(f"{kind}: {', '.join(str(Path(args.out) / file) for file in files)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
