"""Exports a component of a trained model: python -m hive_jax.export_hf --run RUN ...

`verify DIR` compares an exported folder again, for instance with another transformers.
"""

import argparse
import sys
from collections.abc import Sequence

from hive_jax.console import report_errors, show
from hive_jax.export.choices import COMPONENTS, DTYPES, FORMATS, TARGETS

_EXAMPLES = """\
examples:
  python -m hive_jax.export_hf --run workdir/stage3 --component encoder --out encoder
  python -m hive_jax.export_hf --run workdir/stage3 --component hive --out hive \\
      --dtype bfloat16
  python -m hive_jax.export_hf verify encoder hive
"""
_VERIFY_EXAMPLES = """\
examples:
  python -m hive_jax.export_hf verify encoder
  python -m hive_jax.export_hf verify encoder hive --python ~/transformers4/bin/python
"""
_PYTHON = "interpreter with torch and transformers to verify with (default: this one)"


class _HelpFormatter(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """Shows the default of each flag, and the examples as they are written."""


@report_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code.

    Args:
      argv: arguments of the command line; None for those of this process.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    return _verify(argv[1:]) if argv[:1] == ["verify"] else _export(argv)


def _export(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hive_jax.export_hf",
        description="Export a component of a run to transformers, big_vision or PyTorch; "
        "`verify DIR` compares an exported folder again.",
        epilog=_EXAMPLES,
        formatter_class=_HelpFormatter,
    )
    required = {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--run", **required, help="workdir of the run")
    parser.add_argument(
        "--component", **required, choices=COMPONENTS, help="what to export"
    )
    parser.add_argument("--out", **required, help="folder or file to write")
    parser.add_argument(
        "--format",
        default="huggingface",
        choices=FORMATS,
        help="a folder for transformers, an .npz for big_vision, or one safetensors "
        "file with the tensors that transformers names",
    )
    parser.add_argument(
        "--dtype", default="float32", choices=DTYPES, help="of the tensors"
    )
    parser.add_argument(
        "--target",
        default="v5",
        choices=TARGETS,
        help="version of transformers; matters for a vlm with Gemma 1 or 2",
    )
    parser.add_argument(
        "--newline_ends",
        action="store_true",
        help="make the newline the end token of the tokenizer; for lmms-eval",
    )
    parser.add_argument(
        "--no_verify",
        action="store_true",
        help="do not load the folder and compare its outputs",
    )
    parser.add_argument("--python", default=argparse.SUPPRESS, help=_PYTHON)
    args = vars(parser.parse_args(argv))
    # Here and below, because importing JAX would delay --help.
    from hive_jax.export.export import export
    from hive_jax.export.verify import summary

    run, verify = args.pop("run"), not args.pop("no_verify")
    report = export(run, **args, verify=verify)
    show(f"{args['out']}: {args['component']}, {args['dtype']}")
    if report:
        show(summary(report["verification"]))
    return 0


def _verify(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hive_jax.export_hf verify",
        description="Compare the outputs of exported folders with those of hive_jax.",
        epilog=_VERIFY_EXAMPLES,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("folder", nargs="+", help="exported folder")
    parser.add_argument("--python", default=argparse.SUPPRESS, help=_PYTHON)
    args = vars(parser.parse_args(argv))
    from hive_jax.export.verify import summary, verify_folder

    for folder in args.pop("folder"):
        show(f"{folder}: {summary(verify_folder(folder, **args))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
