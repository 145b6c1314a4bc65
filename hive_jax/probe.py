"""Probes frozen encoders: linear, attentive, zero-shot or retrieval, by config.probe."""

import argparse
import sys
from pathlib import Path

from hive_jax.buckets import as_path
from hive_jax.config import ProbeConfig, cli
from hive_jax.console import parse_unique_paths, report_errors, show, text_table
from hive_jax.errors import ConfigError
from hive_jax.io import require_absent, write_json
from hive_jax.plotting import draw_depths

_EXAMPLES = """examples:
  python -m hive_jax.probe --config configs/probe.py --run workdir/stage3
  python -m hive_jax.probe --config configs/probe.py --sweep_depths --out depths \\
      --run base=builtin:tabletop_siglip hive=workdir/stage3
"""


@report_errors
def main(arguments: list[str] | None = None) -> int:
    options, config = cli.parse(_parser(), arguments, ProbeConfig)
    paths = parse_unique_paths(options.run, _default_name)
    _check(options, config, len(paths))
    # Here and below, because importing JAX would delay --help.
    from hive_jax.training.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    if config.probe in ("linear", "attentive"):
        _probe_features(options, config, paths)
    else:
        _evaluate_towers(options, config, paths)
    return 0


def _evaluate_towers(
    options: argparse.Namespace, config: ProbeConfig, paths: dict[str, str]
) -> None:
    from hive_jax.evaluation import zero_shot
    from hive_jax.inference import model

    rows = []
    for name, path in paths.items():
        folder = _folder(options, name, path, len(paths) > 1)
        result = zero_shot.evaluate_towers(config, model.load(path), folder)
        scores = result["scores"].items()
        rows += [(f"{name} {key}", f"{value:.2f}", "") for key, value in scores]
    show(text_table(("encoder", "%", "+-"), rows))


def _probe_features(
    options: argparse.Namespace, config: ProbeConfig, paths: dict[str, str]
) -> None:
    from hive_jax.evaluation.probe import probe
    from hive_jax.export.classifier import export_classifier
    from hive_jax.inference.encoder import load_encoder

    rows, curves, chance = [], {}, 0.0
    for name, path in paths.items():
        folder = _folder(options, name, path, len(paths) > 1)
        encoder = load_encoder(path, name, config.preprocessing)
        results, fitted, work = probe(config, encoder, folder, options.sweep_depths)
        rows += [_row(name, depth, one) for depth, one in results.items()]
        curves[name] = {
            "depths": [*results],
            "accuracy": [one["scores"]["accuracy"] for one in results.values()],
            "std": [one["scores"]["accuracy_std"] for one in results.values()],
        }
        chance = 100 / len(work.classes)
        if options.export:
            fitted = fitted or work.fitted()
            export_classifier(
                options.export,
                encoder.config,
                encoder.params,
                work.depths[0],
                fitted[0][0],
                work.classes,
                config.preprocessing or encoder.preprocessing,
            )
    show(text_table(("encoder", "%", "+-"), rows))
    if options.sweep_depths:
        folder = _folder(options, *next(iter(paths.items())), several=False)
        write_json(folder / "depths.json", {"encoders": curves, "chance": chance})
        draw_depths(folder / "depths.png", curves, chance)
        show(folder / "depths.png")


def _default_name(path: str) -> str:
    """The last component of a path, or the name of built-in weights."""
    return Path(path.removeprefix("builtin:")).name.removesuffix(".npz")


def _row(name: str, depth: int, result: dict) -> tuple[str, str, str]:
    scores = result["scores"]
    accuracy, std = scores["accuracy"], scores["accuracy_std"]
    return f"{name}, depth {depth}", f"{accuracy:.2f}", f"{std:.2f}"


def _folder(options: argparse.Namespace, name: str, path: str, several: bool):
    from hive_jax.training.stored_run import is_run

    if options.out:
        out = as_path(options.out)
        return out / name if several else out
    if is_run(path):
        return as_path(path) / "evaluation"
    return Path("workdir/probe") / name


def _parser() -> argparse.ArgumentParser:
    parser = cli.config_parser("hive_jax.probe", __doc__, _EXAMPLES, schema=ProbeConfig)
    add = parser.add_argument
    add(
        "--run",
        nargs="+",
        default=["builtin:tabletop_siglip"],
        metavar="[NAME=]PATH",
        help="encoders: workdirs of runs, Hugging Face folders or hub ids, big_vision "
        ".npz files, or builtin:NAME (default: builtin:tabletop_siglip)",
    )
    add(
        "--out",
        help="folder to write, OUT/NAME for several encoders (default: evaluation/ in "
        "the workdir of a run, workdir/probe/NAME for other weights)",
    )
    add(
        "--sweep_depths",
        action="store_true",
        help="probe every depth and draw accuracy against depth (default: off)",
    )
    add(
        "--export",
        metavar="FOLDER",
        help="write a linear probe as SiglipForImageClassification (default: no)",
    )
    return parser


def _check(options: argparse.Namespace, config: ProbeConfig, count: int) -> None:
    if options.sweep_depths and config.probe not in ("linear", "attentive"):
        raise ConfigError(
            f"--sweep_depths: config.probe is {config.probe!r}; expected linear or "
            "attentive"
        )
    if options.export:
        if config.probe != "linear" or count > 1 or options.sweep_depths:
            raise ConfigError(
                "--export is for one encoder, config.probe='linear' and one depth: "
                "transformers has no class for another probe"
            )
        require_absent(options.export)


if __name__ == "__main__":
    sys.exit(main())
