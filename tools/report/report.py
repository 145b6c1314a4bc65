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
    # Everything is loaded before the first section: a missing run ends the command at
    # once.
    trained_models = {name: load_run(workdir) for name, workdir in runs.items()}
    # Read now, for the same reason.
    others = [section for folder in include for section in included(folder)]
    # Heading and function of each section, in the order of the page.
    makers = [
        ("Results", lambda _: sections.results(runs) + sections.evaluations(runs)),
        ("Samples", lambda _: samples(trained_models)),
        ("Curves and pictures", lambda out: _drawn(out, runs, trained_models, base)),
        ("What moved", lambda _: sections.moved(runs)),
        # The default argument binds the body of this iteration.
        *((heading, lambda _, body=body: body) for heading, body in others),
        ("Configuration", lambda _: sections.configuration(trained_models)),
    ]
    blocks = []
    with (
        # Pictures are embedded in the page and not needed afterwards.
        tempfile.TemporaryDirectory() as folder,
        progress_bar("report", len(makers), 0) as bar,
    ):
        for heading, make in makers:
            blocks.append((heading, make(Path(folder))))
            bar.update()
    # Which run, fusion and step a figure of the page belongs to.
    about = ", ".join(
        f"{name}: {trained.config.name}, {trained.config.model.fusion}, step "
        f"{trained.checkpoint['step']}"
        for name, trained in trained_models.items()
    )
    about += f". hive_jax {hive_jax.__version__}."
    write_text(Path(out), page.page(", ".join(runs), about, blocks))


def _drawn(
    folder: Path,
    runs: Mapping[str, str],
    trained_models: Mapping[str, TrainedModel],
    base: str,
) -> str:
    """Curves, gradient flow and changes in one picture each, then those of each run."""
    first, drawings = next(iter(trained_models)), {}
    # Numbered, because a name need not be a file name.
    folders = {name: folder / str(number) for number, name in enumerate(trained_models)}
    for name, trained in trained_models.items():
        drawings[name] = visualize(
            trained,
            captioned_scenes(trained.config, _SCENES),
            str(folders[name]),
            base=base,
            # Figures over all runs are drawn once, with the first run.
            beside=_other_fusions(runs, trained_models) if name == first else None,
            curves=runs if name == first else None,
        )
    body = "".join(
        page.picture(folders[first] / file, caption, large=True)
        for kind, caption in _OF_ALL.items()
        for file in drawings[first]["pictures"].get(kind, ())
    )
    changes = {
        name: drawing["changes"]
        for name, drawing in drawings.items()
        if "changes" in drawing
    }
    # One figure for all runs, in place of one for each.
    if changes:
        plots.draw_changes(folder / "changes.png", changes)
        caption = "How far each depth has moved from the base encoder."
        body += page.picture(folder / "changes.png", caption, large=True)
    for kind, caption in _OF_EACH.items():
        body += page.heading(kind.capitalize()) + page.paragraph(caption)
        for name, drawing in drawings.items():
            if reason := drawing["left_out"].get(kind):
                body += page.paragraph(f"{name}: {reason}")
            for file in drawing["pictures"].get(kind, ()):
                body += page.picture(folders[name] / file, name, large=True)
    return body


def _other_fusions(
    runs: Mapping[str, str], trained_models: Mapping[str, TrainedModel]
) -> dict[str, str]:
    """Returns the first run of each fusion other than the first run's, by fusion."""
    first, by_fusion = next(iter(trained_models.values())).config.model.fusion, {}
    for name, trained in trained_models.items():
        fusion = trained.config.model.fusion
        # Run "none" has no fusion to compare gradients of.
        if fusion != first and "fusion" in trained.params:
            by_fusion.setdefault(fusion, runs[name])
    return by_fusion
