"""Draws all figures of a run into a folder, with their numbers in figures.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hive_jax.analysis import plots
from hive_jax.analysis.attention import attention_maps
from hive_jax.analysis.examples import CaptionedImage, make_batch
from hive_jax.analysis.features import (
    compare_features,
    extract_features,
    principal_colours,
)
from hive_jax.analysis.gradients import (
    feature_gradients,
    gradient_flow,
    require_image_reader,
    share_towers,
)
from hive_jax.analysis.plots import read_curves
from hive_jax.console import log, progress_bar
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.errors import ConfigError, MissingInputError
from hive_jax.inference.encoder import load_encoder
from hive_jax.inference.model import TrainedModel, load_run
from hive_jax.io import require_writable, write_json
from hive_jax.training.objectives import compute_dtype

FIGURES = "figures.json"


def newest_run(folder: str = "workdir") -> str:
    """Finds the most recently trained run. Raises MissingInputError if there is none."""
    runs = [path.parent for path in Path(folder).glob("*/metrics.jsonl")]
    if not runs:
        raise MissingInputError(f"no run in {folder}/: train one first, or name one")
    # Trained last, not created last: metrics.jsonl is written at every log step.
    return str(max(runs, key=lambda run: (run / "metrics.jsonl").stat().st_mtime))


def visualize(
    trained: TrainedModel,
    examples: Sequence[CaptionedImage],
    out: str,
    *,
    base: str = "",
    beside: Mapping[str, str] | None = None,
    curves: Mapping[str, str] | None = None,
) -> dict:
    """Draws all figures that apply to a run, and records why others do not apply.

    Args:
      trained: model of the run.
      examples: images with or without captions.
      out: folder to write.
      base: path of an encoder to compare features with, as for `load_encoder`; empty
        for none.
      beside: name -> workdir of runs with other fusions, to compare the gradient flow
        with shared towers; None to skip this figure.
      curves: name -> workdir of runs whose training curves to draw; None to skip.

    Returns:
      Content of figures.json: file names by kind under "pictures", the numbers of the
      figures, and kind -> reason under "left_out".

    Raises:
      OutputError: `out` cannot be written.
    """
    folder = require_writable(out)
    pictures = _Pictures(folder, trained, examples)
    # In this order, and each on its own: one that does not apply leaves the others.
    drawings = {
        "gradients": pictures.gradients,
        "attention": pictures.attention,
        "layers": lambda: pictures.layers(base),
    }
    if beside is not None:
        drawings["flow"] = lambda: pictures.flow(beside)
    if curves is not None:
        drawings["curves"] = lambda: pictures.curves(curves)
    with progress_bar("pictures", len(drawings), 0) as bar:
        for kind, draw in drawings.items():
            try:
                draw()
            # Other errors, such as damaged weights, end the command.
            except ConfigError as error:
                pictures.numbers["left_out"][kind] = str(error)
                log(f"no {kind}: {error}")
            bar.update()
    # Last, so that the file stands for a folder that is complete.
    write_json(folder / FIGURES, pictures.numbers)
    return pictures.numbers


class _Pictures:
    """Each method draws one kind of figure, or raises ConfigError with the reason."""

    def __init__(
        self, folder: Path, trained: TrainedModel, examples: Sequence[CaptionedImage]
    ):
        self._folder, self._trained, self._examples = folder, trained, [*examples]
        self._config = trained.config
        self._tokenizer = load_tokenizer(trained.config.data.tokenizer)
        self._captioned = [
            example for example in self._examples if example.caption.strip()
        ]
        self.numbers = {
            "run": trained.checkpoint,
            "captions": {example.name: example.caption for example in self._examples},
            "pictures": {},
            "left_out": {},
        }

    def _path(self, kind: str, name: str) -> Path:
        # A name may come from a file or a config: it must not lead into another folder.
        file = f"{kind}_{name}.png".replace(" ", "_").replace("/", "_")
        self.numbers["pictures"].setdefault(kind, []).append(file)
        return self._folder / file

    def _batch(self):
        if not self._captioned:
            raise ConfigError(
                "no image has a caption, and so there is no loss; give one"
            )
        return make_batch(self._captioned, self._tokenizer)

    def gradients(self) -> None:
        norms = feature_gradients(self._config, self._trained.params, self._batch())
        for row, example in enumerate(self._captioned):
            plots.draw_gradients(
                self._path("gradients", example.name), example, norms[:, row]
            )

    def flow(self, beside: Mapping[str, str]) -> None:
        require_image_reader(self._config)
        batch, name = self._batch(), self._config.model.fusion
        runs = {name: (self._config, self._trained.params)}
        for other, workdir in beside.items():
            if other in runs:
                raise ConfigError(f"{other!r} is the name of the run itself here")
            run = load_run(workdir)
            require_image_reader(run.config)
            # With the towers of this run, so that only the fusions differ.
            runs[other] = run.config, share_towers(self._trained.params, run.params)
        flow = gradient_flow(runs, batch)
        self.numbers["flow"] = {key: sizes.tolist() for key, sizes in flow.items()}
        title = f"gradient by layer, mean of {len(batch.tokens)} images"
        if beside:
            title += f", all with the towers of {self._config.name}"
        plots.draw_flow(self._path("flow", "layers"), flow, title)

    def attention(self) -> None:
        # Raises if there is no caption; its batch is not needed here.
        self._batch()
        run = self._config, self._trained.params, self._tokenizer
        attentions = attention_maps(*run, self._captioned)
        for example, words in zip(self._captioned, attentions, strict=True):
            plots.draw_attention(self._path("attention", example.name), example, words)
        # Heads of the first image alone: a figure for each connection.
        for number, layer in enumerate(attentions[0].layers):
            path = self._path("heads", f"layer_{layer}")
            plots.draw_heads(path, self._captioned[0], attentions[0], number)

    def layers(self, base: str) -> None:
        if "img" not in self._trained.params:
            raise ConfigError(f"{self._config.name} has no encoder")
        config = self._config.model.encoder
        images = np.stack([one.image for one in self._examples])
        dtype = compute_dtype(self._config.dtype)
        features = extract_features(config, self._trained.params["img"], images, dtype)
        colours = np.stack([principal_colours(one) for one in features])
        plots.draw_layers(self._path("layers", "colours"), self._examples, colours)
        if not base:
            return
        other = load_encoder(base)
        # CKA would allow other widths, but the distance compares features one by one.
        if (other.config.depth, other.config.num_patches, other.config.width) != (
            *(config.depth, config.num_patches),
            config.width,
        ):
            raise ConfigError(f"{base} is an encoder of another size: not compared")
        base_features = extract_features(other.config, other.params, images, dtype)
        changes = self.numbers["changes"] = compare_features(features, base_features)
        path = self._path("changes", "depths")
        plots.draw_changes(path, {self._config.name: changes})

    def curves(self, runs: Mapping[str, str]) -> None:
        by_run = {}
        for name, workdir in runs.items():
            try:
                by_run[name] = read_curves(workdir)
            # The others are drawn if one has not started.
            except MissingInputError as error:
                log(str(error))
        if not any(by_run.values()):
            raise ConfigError("no run has written metrics.jsonl")
        plots.draw_curves(self._path("curves", "runs"), by_run)
