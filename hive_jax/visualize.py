"""Draws what a run does: gradients, attention, features, training curves.

Without --image the examples are scenes of the built-in world; without --run the run is
the newest one in workdir/.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from hive_jax.buckets import as_path
from hive_jax.console import parse_unique_paths, report_errors, show, text_table
from hive_jax.errors import ConfigError
from hive_jax.io import write_json

if TYPE_CHECKING:
    from hive_jax.analysis.localization import Localization

_EXAMPLES = """examples:
  python -m hive_jax.visualize --run workdir/stage3 --out pictures
  python -m hive_jax.visualize --run workdir/stage3 --image photo.jpg \\
      --caption "a dog on a beach"
"""


@report_errors
def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    _check(options)
    # Here, because importing JAX would delay --help.
    from hive_jax.analysis.examples import captioned_file, captioned_scenes
    from hive_jax.analysis.localization import measure_localization
    from hive_jax.analysis.visualize import FIGURES, newest_run, visualize
    from hive_jax.inference.model import load_run
    from hive_jax.training.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    run = options.run or newest_run()
    trained = load_run(run)
    if options.image:
        examples = [captioned_file(options.image, options.caption, trained.config)]
    else:
        examples = captioned_scenes(trained.config, options.scenes)
    out = as_path(options.out)
    figures = visualize(
        trained,
        examples,
        options.out,
        base=options.base,
        beside=parse_unique_paths(options.beside),
        curves=parse_unique_paths(options.curves) or {trained.config.name: run},
    )
    if options.localization:
        measured = measure_localization(
            trained.config, trained.params, trained.tokenizer, options.localization
        )
        figures["localization"] = vars(measured)
        write_json(out / FIGURES, figures)
        show(_localization_table(measured))
    for kind, files in figures["pictures"].items():
        show(f"{kind}: {', '.join(str(out / file) for file in files)}")
    return 0


def _localization_table(measured: "Localization") -> str:
    header = ("depth", "attention, toy / rest", "above 1", "own toy of two")
    rows = [
        (
            depth,
            f"{ratio:.2f}",
            f"{measured.hit_rate[depth]:.1%}",
            f"{measured.distinguished[depth]:.1%}",
        )
        for depth, ratio in measured.attention.items()
    ]
    return text_table(header, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hive_jax.visualize",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", metavar="PATH", help="workdir of a run (default: the newest)")
    add("--image", help="image file (default: built-in scenes)")
    add("--caption", default="", help="caption of the image (default: none)")
    add("--scenes", type=int, default=4, help="built-in scenes (default: 4)")
    add("--out", default="pictures", help="folder to write (default: pictures)")
    add(
        "--base",
        default="builtin:tabletop_siglip",
        metavar="PATH",
        help="encoder to compare features with (default: %(default)s)",
    )
    add(
        "--beside",
        nargs="*",
        default=[],
        metavar="NAME=PATH",
        help="runs of other fusions, for the gradient flow with shared towers "
        "(default: none)",
    )
    add(
        "--curves",
        nargs="*",
        default=[],
        metavar="NAME=PATH",
        help="runs to draw training curves of (default: this run)",
    )
    add(
        "--localization",
        type=int,
        default=0,
        metavar="N",
        help="measure localization on N scenes of one toy, and of two (default: 0)",
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    if options.caption and not options.image:
        raise ConfigError("--caption is of an image; expected --image too")
    if options.localization < 0:
        raise ConfigError(
            f"--localization is {options.localization}; expected 0 or more"
        )
    if options.scenes < 1:
        raise ConfigError(f"--scenes is {options.scenes}; expected 1 or more")


if __name__ == "__main__":
    sys.exit(main())
