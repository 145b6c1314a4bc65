"""The paper, small: base, HIVE and both baselines, their probes, VLMs and benchmarks.

    python -m tools.reproduce --scale tabletop --seeds 3 --out reproduction
    python -m tools.reproduce --scale tabletop --quick --out quick
    python -m tools.reproduce --scale tabletop_long --seeds 1 --out long
    python -m tools.reproduce --fusions hive,joint --decoder tiny_llama --out llama

Run it again after an interruption and it goes on where it stopped; with more --fusions it
adds them. The tables, beside the paper's, are in OUT/comparison; accuracy at every depth
is in OUT/depths, and compared with the base at its best one in OUT/comparison_of_depths.
"""

import argparse
import sys
from pathlib import Path

from hive_jax.console import report_errors, show
from hive_jax.errors import ConfigError
from hive_jax.models.fusion_kinds import FUSIONS as ALL_FUSIONS
from tools.reproduce.reproduce import reproduce
from tools.reproduce.steps import DECODERS, FUSIONS, QUICK, SCALES, Reproduction


@report_errors
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--scale",
        default="tabletop",
        choices=[*SCALES],
        help="size of the experiments (default: tabletop)",
    )
    parser.add_argument("--seeds", type=int, help="(default: 3, and 1 with --quick)")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--quick", action="store_true", help="few steps, one seed (default: off)"
    )
    parser.add_argument(
        "--fusions",
        default=",".join(FUSIONS),
        help=f"what to compare with the base, of {', '.join(_with_image())}, with commas "
        "between them (default: %(default)s)",
    )
    parser.add_argument(
        "--decoder",
        default=DECODERS[0],
        choices=DECODERS,
        help="LLM of the pre-training and of the VLMs: the built-in Gemma, or a Llama that "
        "is trained first (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    seeds = args.seeds if args.seeds is not None else (1 if args.quick else 3)
    scale = QUICK if args.quick else SCALES[args.scale]
    # Absolute, because the commands run in another folder.
    out, fusions = Path(args.out).absolute(), _parse_fusions(args.fusions)
    folder = reproduce(Reproduction(out, scale, fusions, args.decoder), seeds)
    show((folder / "compare.md").read_text("utf-8"))
    show(folder / "compare.png")
    return 0


def _with_image() -> list[str]:
    return [name for name, fusion in ALL_FUSIONS.items() if fusion.uses_image]


def _parse_fusions(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in _with_image()]:
        raise ConfigError(
            f"--fusions has {', '.join(map(repr, unknown))}; expected some of "
            f"{', '.join(_with_image())}, with commas between them"
        )
    return names


if __name__ == "__main__":
    sys.exit(main())
