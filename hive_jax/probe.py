"""Probes frozen encoders: python -m hive_jax.probe --config configs/probe.py

Flags: --out, --sweep_depths, --export, and --config.KEY=VALUE for every key.
"""

from pathlib import Path

from absl import flags

from hive_jax.config import ProbeConfig, cli
from hive_jax.console import text_table
from hive_jax.errors import ConfigError
from hive_jax.export.classifier import export_classifier
from hive_jax.io import require_absent, write_json
from hive_jax.probing import encoders, towers
from hive_jax.probing.figures import draw_depths
from hive_jax.probing.probing import probe
from hive_jax.training import runtime
from hive_jax.training.stored_run import is_run

_OUT = flags.DEFINE_string(
    "out",
    None,
    "Folder to write, OUT/NAME for several encoders; default: evaluation/ in a run's "
    "workdir, and workdir/probe/NAME for other weights.",
)
_SWEEP_DEPTHS = flags.DEFINE_bool(
    "sweep_depths", False, "Probe every depth, and draw accuracy against depth."
)
_EXPORT = flags.DEFINE_string(
    "export", None, "Folder for a linear probe as SiglipForImageClassification."
)


def main(config: ProbeConfig) -> int:
    """Probes each encoder of config.init; returns the exit code."""
    on_features = config.probe in ("linear", "attentive")
    paths = encoders.named(config.init)
    _check(config, on_features, len(paths))
    runtime.enable_compilation_cache()
    rows, curves, chance = [], {}, 0.0
    for name, path in paths.items():
        folder = _folder(name, path, len(paths) > 1)
        if not on_features:
            found = towers.evaluate_towers(config, towers.load(name, path), folder)
            rows += [
                (f"{name} {key}", f"{value:.2f}", "")
                for key, value in found["scores"].items()
            ]
            continue
        encoder = encoders.load(name, path)
        results, fitted, work = probe(config, encoder, folder, _SWEEP_DEPTHS.value)
        rows += [_row(name, depth, one) for depth, one in results.items()]
        curves[name] = {
            "depths": [*results],
            "accuracy": [one["scores"]["accuracy"] for one in results.values()],
            "std": [one["scores"]["accuracy_std"] for one in results.values()],
        }
        chance = 100 / len(work.classes)
        if _EXPORT.value:
            fitted = fitted or work.fitted()
            export_classifier(
                *(_EXPORT.value, encoder.config, encoder.params, work.depths[0]),
                *(fitted[0][0], work.classes),
                config.preprocessing or encoder.preprocessing,
            )
    print(text_table(("encoder", "%", "+-"), rows))
    if _SWEEP_DEPTHS.value:
        first = next(iter(paths.items()))
        folder = Path(_OUT.value) if _OUT.value else _folder(*first, False)
        write_json(folder / "depths.json", {"encoders": curves, "chance": chance})
        draw_depths(folder / "depths.png", curves, chance)
        print(folder / "depths.png")
    return 0


def _row(name: str, depth: int, result: dict) -> tuple[str, str, str]:
    scores = result["scores"]
    accuracy, std = scores["accuracy"], scores["accuracy_std"]
    return f"{name}, depth {depth}", f"{accuracy:.2f}", f"{std:.2f}"


def _folder(name: str, path: str, several: bool) -> Path:
    if _OUT.value:
        return Path(_OUT.value) / name if several else Path(_OUT.value)
    return Path(path) / "evaluation" if is_run(path) else Path("workdir/probe") / name


def _check(config: ProbeConfig, on_features: bool, count: int) -> None:
    if _SWEEP_DEPTHS.value and not on_features:
        raise ConfigError(
            f"--sweep_depths: config.probe is {config.probe!r}; expected linear or "
            "attentive"
        )
    if _EXPORT.value:
        if config.probe != "linear" or count > 1 or _SWEEP_DEPTHS.value:
            raise ConfigError(
                "--export is for one encoder, config.probe='linear' and one depth: "
                "transformers has no class for another probe"
            )
        require_absent(_EXPORT.value)


if __name__ == "__main__":
    cli.run(main, ProbeConfig)
