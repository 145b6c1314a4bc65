"""A report of one run, or of several side by side, as one page of HTML."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import hive_jax
from hive_jax.analysis import plots
from hive_jax.analysis.examples import captioned_scenes
from hive_jax.analysis.visualize import visualize
from hive_jax.console import progress_bar
from hive_jax.inference.model import TrainedModel, load_run
from hive_jax.io import write_text
from tools.report import page, sections
from tools.report.included import included
from tools.report.samples import samples

_OF_ALL = {
    "curves": "What the runs wrote while they trained.",
    "flow": "The mean size of the gradient at each encoder layer, all fusions at the "
    "towers of the first run.",
}
_OF_EACH = {
    "gradients": "The size of the loss's gradient at every patch, layer by layer.",
    "attention": "Where each connected LLM layer looks while it writes each word.",
    "layers": "Features of each depth; the colours are their three largest components.",
}
_SCENES = 2  # of each kind of picture


def write_report(
    out: str, runs: Mapping[str, str], *, base: str = "", include: Sequence[str] = ()
) -> None:
    """Writes the page.

    Args:
      runs: name -> workdir; the first one's towers serve for the gradient flow.
      base: the encoder that features are compared with.
      include: folders of other commands whose results are shown; see `included`.

    Raises:
      MissingInputError: there is no such run, or a folder to include has nothing known.
      OutputError: the page cannot be written.
    """
    trained_models = {name: load_run(workdir) for name, workdir in runs.items()}
    others = [part for folder in include for part in included(folder)]
    makers = [
        ("Results", lambda _: sections.results(runs) + sections.evaluations(runs)),
        ("Samples", lambda _: samples(trained_models)),
        ("Curves and pictures", lambda out: _drawn(out, runs, trained_models, base)),
        ("What moved", lambda _: sections.moved(runs)),
        *((heading, lambda _, body=body: body) for heading, body in others),
        ("Configuration", lambda _: sections.configuration(trained_models)),
    ]
    made = []
    with (
        tempfile.TemporaryDirectory() as folder,
        progress_bar("report", len(makers), 0) as bar,
    ):
        for heading, make in makers:
            made.append((heading, make(Path(folder))))
            bar.update()
    about = ", ".join(
        f"{name}: {one.config.name}, {one.config.model.fusion}, step "
        f"{one.checkpoint['step']}"
        for name, one in trained_models.items()
    )
    about += f". hive_jax {hive_jax.__version__}."
    write_text(Path(out), page.page(", ".join(runs), about, made))


def _drawn(
    folder: Path,
    runs: Mapping[str, str],
    trained_models: Mapping[str, TrainedModel],
    base: str,
) -> str:
    """Curves, gradient flow and changes in one picture each, then those of each run."""
    first, found = next(iter(trained_models)), {}
    places = {name: folder / str(number) for number, name in enumerate(trained_models)}
    for name, trained in trained_models.items():
        found[name] = visualize(
            trained,
            captioned_scenes(trained.config, _SCENES),
            str(places[name]),
            base=base,
            beside=_other_fusions(runs, trained_models) if name == first else None,
            curves=runs if name == first else None,
        )
    body = "".join(
        page.picture(places[first] / file, caption, large=True)
        for kind, caption in _OF_ALL.items()
        for file in found[first]["pictures"].get(kind, ())
    )
    changes = {name: one["changes"] for name, one in found.items() if "changes" in one}
    if changes:
        plots.draw_changes(folder / "changes.png", changes)
        caption = "How far each depth has moved from the base encoder."
        body += page.picture(folder / "changes.png", caption, large=True)
    for kind, caption in _OF_EACH.items():
        body += page.heading(kind.capitalize()) + page.paragraph(caption)
        for name, one in found.items():
            if why := one["left_out"].get(kind):
                body += page.paragraph(f"{name}: {why}")
            for file in one["pictures"].get(kind, ()):
                body += page.picture(places[name] / file, name, large=True)
    return body


def _other_fusions(
    runs: Mapping[str, str], trained_models: Mapping[str, TrainedModel]
) -> dict[str, str]:
    """Returns the first run of each fusion other than the first run's, by fusion."""
    first, found = next(iter(trained_models.values())).config.model.fusion, {}
    for name, trained in trained_models.items():
        fusion = trained.config.model.fusion
        if fusion != first and "fusion" in trained.params:
            found.setdefault(fusion, runs[name])
    return found
