"""All pictures of a run, in a folder, and their numbers in figures.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hive_jax.analysis import charts, maps
from hive_jax.analysis.attention import attention_maps
from hive_jax.analysis.curves import read_curves
from hive_jax.analysis.features import compare_features, features_of, principal_colours
from hive_jax.analysis.gradients import (
    feature_gradients,
    gradient_flow,
    require_reader,
    same_towers,
)
from hive_jax.analysis.shown import Shown, batch_of
from hive_jax.console import log, progress_bar
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.errors import ConfigError, MissingInputError
from hive_jax.evaluation.subject import Subject, open_run
from hive_jax.io import output_errors, write_json
from hive_jax.probing import encoders
from hive_jax.training.objectives import compute_dtype

FIGURES = "figures.json"


def newest_run(folder: str = "workdir") -> str:
    """The run that was trained last. Raises MissingInputError."""
    found = [path.parent for path in Path(folder).glob("*/metrics.jsonl")]
    if not found:
        raise MissingInputError(
            f"no run in {folder}/: train one first, or name one with --init"
        )
    return str(max(found, key=lambda one: (one / "metrics.jsonl").stat().st_mtime))


def visualize(
    subject: Subject,
    shown: Sequence[Shown],
    out: str,
    *,
    base: str = "",
    beside: Mapping[str, str] | None = None,
    curves: Mapping[str, str] | None = None,
) -> dict:
    """Draws what can be drawn of a run, and says what cannot, and why.

    Args:
      shown: images, with captions or without.
      out: folder to write.
      base: an encoder as `probing.encoders.load` takes it, which features are compared
        with; empty for none.
      beside: name -> workdir of other fusions, for the gradient flow at equal towers;
        None for no such chart.
      curves: name -> workdir of the runs whose metrics.jsonl is drawn, or None.

    Returns:
      What is in figures.json: "pictures" by kind, the numbers, and "left_out".
    """
    folder = Path(out)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    work = _Pictures(folder, subject, shown)
    todo = {
        "gradients": work.gradients,
        "attention": work.attention,
        "layers": lambda: work.layers(base),
    }
    if beside is not None:
        todo["flow"] = lambda: work.flow(beside)
    if curves is not None:
        todo["curves"] = lambda: work.curves(curves)
    with progress_bar("pictures", len(todo), 0) as bar:
        for kind, draw in todo.items():
            try:
                draw()
            except ConfigError as error:
                work.found["left_out"][kind] = str(error)
                log(f"no {kind}: {error}")
            bar.update()
    write_json(folder / FIGURES, work.found)
    return work.found


class _Pictures:
    """Each method draws one kind; ConfigError says why it cannot be drawn."""

    def __init__(self, folder: Path, subject: Subject, shown: Sequence[Shown]):
        self._folder, self._subject, self._shown = folder, subject, [*shown]
        self._config = subject.config
        self._tokenizer = load_tokenizer(subject.config.data.tokenizer)
        self._told = [one for one in self._shown if one.caption.strip()]
        self.found = {
            "run": subject.checkpoint,
            "captions": {one.name: one.caption for one in self._shown},
            "pictures": {},
            "left_out": {},
        }

    def _path(self, kind: str, name: str) -> Path:
        file = f"{kind}_{name}.png".replace(" ", "_").replace("/", "_")
        self.found["pictures"].setdefault(kind, []).append(file)
        return self._folder / file

    def _batch(self):
        if not self._told:
            raise ConfigError("there is no caption, and so no loss; give one")
        return batch_of(self._told, self._tokenizer)

    def gradients(self) -> None:
        sizes = feature_gradients(self._config, self._subject.params, self._batch())
        for row, one in enumerate(self._told):
            maps.draw_gradients(self._path("gradients", one.name), one, sizes[:, row])

    def flow(self, beside: Mapping[str, str]) -> None:
        require_reader(self._config)
        batch, name = self._batch(), self._config.model.fusion
        runs = {name: (self._config, self._subject.params)}
        for other, workdir in beside.items():
            if other in runs:
                raise ConfigError(f"{other!r} is what the run itself is called here")
            run = open_run(workdir)
            require_reader(run.config)
            runs[other] = run.config, same_towers(self._subject.params, run.params)
        flow = gradient_flow(runs, batch)
        self.found["flow"] = {key: sizes.tolist() for key, sizes in flow.items()}
        title = f"gradient by layer, mean of {len(batch.tokens)} images"
        if beside:
            title += f", all with the towers of {self._config.name}"
        charts.draw_flow(self._path("flow", "layers"), flow, title)

    def attention(self) -> None:
        self._batch()
        run = self._config, self._subject.params, self._tokenizer
        found = attention_maps(*run, self._told)
        for one, words in zip(self._told, found, strict=True):
            maps.draw_attention(self._path("attention", one.name), one, words)
        for number, layer in enumerate(found[0].layers):
            path = self._path("heads", f"layer_{layer}")
            maps.draw_heads(path, self._told[0], found[0], number)

    def layers(self, base: str) -> None:
        if "img" not in self._subject.params:
            raise ConfigError(f"{self._config.name} has no encoder")
        config = self._config.model.encoder
        images = np.stack([one.image for one in self._shown])
        dtype = compute_dtype(self._config.dtype)
        features = features_of(config, self._subject.params["img"], images, dtype)
        colours = np.stack([principal_colours(one) for one in features])
        maps.draw_layers(self._path("layers", "colours"), self._shown, colours)
        if not base:
            return
        other = encoders.load("base", base)
        if (other.config.depth, other.config.num_patches, other.config.width) != (
            *(config.depth, config.num_patches),
            config.width,
        ):
            raise ConfigError(f"{base} is an encoder of another size: not compared")
        theirs = features_of(other.config, other.params, images, dtype)
        changes = self.found["changes"] = compare_features(features, theirs)
        path = self._path("changes", "depths")
        charts.draw_changes(path, {self._config.name: changes})

    def curves(self, runs: Mapping[str, str]) -> None:
        found = {}
        for name, workdir in runs.items():
            try:
                found[name] = read_curves(workdir)
            except MissingInputError as error:
                log(str(error))
        if not any(found.values()):
            raise ConfigError("no run has written metrics.jsonl")
        charts.draw_curves(self._path("curves", "runs"), found)
