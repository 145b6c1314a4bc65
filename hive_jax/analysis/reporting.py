"""A report of one run, or of several side by side, as one page of HTML."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import hive_jax
from hive_jax.analysis import page
from hive_jax.analysis.shown import Shown, shown_scenes
from hive_jax.analysis.visualizing import visualize
from hive_jax.config import to_dict
from hive_jax.data.files import read_json, write_text
from hive_jax.data.images import as_png
from hive_jax.data.tabletop import Tabletop
from hive_jax.errors import ConfigError, HiveError, MissingInputError
from hive_jax.evaluation import comparing, tables
from hive_jax.evaluation.evaluating import make_generator
from hive_jax.evaluation.generate import Decoding, Prompt
from hive_jax.evaluation.subject import Subject, open_run
from hive_jax.export.certificate import summary
from hive_jax.training.metrics import progress_bar, say
from hive_jax.weights.tensors import CERTIFICATE

_CAPTIONS = {
    "gradients": "The size of the loss's gradient at every patch, layer by layer.",
    "attention": "Where each connected LLM layer looks while it writes each word.",
    "layers": "Features of each depth; the colours are their three largest components.",
    "changes": "How far each depth has moved from the base encoder.",
}
_SCENES = 2  # of each kind of picture
_SAMPLES = 6


def write_report(
    out: str,
    runs: Mapping[str, str],
    *,
    base: str = "",
    exports: Sequence[str] = (),
    benchmarks: str = "",
) -> None:
    """Writes the page.

    Args:
      runs: name -> workdir; the first one's towers serve for the gradient flow.
      base: the encoder that features are compared with.
      exports: folders of tools/export_hf.py, whose certificates are shown.
      benchmarks: folder of tools/benchmark.py, whose charts are shown.

    Raises:
      MissingInputError: there is no such run.
      OutputError: the page cannot be written.
    """
    subjects = {name: open_run(workdir) for name, workdir in runs.items()}
    for folder in exports:
        if not (Path(folder) / CERTIFICATE).is_file():
            raise MissingInputError(f"{folder} has no {CERTIFICATE}: no export")
    makers = {
        "Results": lambda folder: _results(runs) + _evaluations(runs),
        "Samples": lambda folder: _samples(subjects),
        "Curves and pictures": lambda folder: _drawn(folder, runs, subjects, base),
        "What moved": lambda folder: _moved(runs),
        "Configuration": lambda folder: _configuration(subjects),
        "Exports": lambda folder: "".join(_certificate(Path(one)) for one in exports),
        "Cost": lambda folder: _charts(benchmarks),
    }
    sections = []
    with (
        tempfile.TemporaryDirectory() as folder,
        progress_bar("report", len(makers), 0) as bar,
    ):
        for heading, make in makers.items():
            sections.append((heading, make(folder)))
            bar.update()
    about = ", ".join(
        f"{name}: {one.config.name}, {one.config.model.fusion}, step "
        f"{one.checkpoint['step']}"
        for name, one in subjects.items()
    )
    about += f". hive_jax {hive_jax.__version__}."
    write_text(Path(out), page.page(f"HIVE: {', '.join(runs)}", about, sections))


def _results(runs: Mapping[str, str]) -> str:
    """The final validation of each run."""
    found = {
        name: _result(workdir).get("validation", {}) for name, workdir in runs.items()
    }
    keys = dict.fromkeys(key for values in found.values() for key in values)
    rows = [
        [
            key.replace("_", " "),
            *(_number(values.get(key)) for values in found.values()),
        ]
        for key in keys
    ]
    intro = (
        "Losses on held-out samples, in nats per token. The image gain is what looking "
        "is worth: the loss with another sample's image minus that with the right one."
    )
    return page.paragraph(intro) + page.table(["validation", *runs], rows)


def _evaluations(runs: Mapping[str, str]) -> str:
    """Probes and benchmarks: compared where several runs have them, else as they are."""
    having = {}
    for name, workdir in runs.items():
        try:
            having[name] = comparing.read(workdir)
        except HiveError:
            continue
    if not having:
        return ""
    tasks = dict.fromkeys(task for found in having.values() for task in found)
    rows = [
        [f"{task} {score}", *(_score(found, task, score) for found in having.values())]
        for task in tasks
        for score in next(f[task] for f in having.values() if task in f).result[
            "scores"
        ]
    ]
    body = page.heading("Probes and benchmarks") + page.table(["task", *having], rows)
    try:
        compared = comparing.compared({name: [runs[name]] for name in having})
    except HiveError as error:
        say(f"not compared: {error}")
        return body
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compare.png"
        tables.draw(path, compared)
        body += page.picture(
            path, "Scores; lines are 95 % intervals of the difference."
        )
    against = [
        [
            row.title,
            name,
            f"{one.value:+.2f}",
            f"{one.low:+.2f} to {one.high:+.2f}",
            *(f"{one.wins:.4g}", f"{one.losses:.4g}", f"{one.p:.2g}"),
        ]
        for row in compared
        for name, one in row.differences.items()
    ]
    header = ["task", f"against {next(iter(having))}", "difference", "95 %", "better"]
    return body + page.table([*header, "worse", "p"], against)


def _score(found: dict, task: str, score: str) -> str:
    return _number(found[task].result["scores"].get(score)) if task in found else ""


def _drawn(folder: str, runs, subjects: Mapping[str, Subject], base: str) -> str:
    """Curves of all runs, the gradient flow, and the pictures of each."""
    body, by_kind = "", {}
    for number, (name, subject) in enumerate(subjects.items()):
        out = Path(folder) / str(number)
        others = {n: w for n, w in runs.items() if n != name}
        found = visualize(
            subject,
            shown_scenes(subject.config, _SCENES),
            str(out),
            base=base,
            beside={} if number else _other_fusions(others, subjects, subject),
            curves={} if number else dict(runs),
        )
        for kind, files in found["pictures"].items():
            if kind in ("curves", "flow") and not number:
                caption = {
                    "curves": "What the runs wrote while they trained.",
                    "flow": "The mean size of the gradient at each encoder layer, at "
                    f"the towers of {name}.",
                }[kind]
                body += page.picture(out / files[0], caption)
            elif kind in _CAPTIONS:
                by_kind.setdefault(kind, []).extend((name, out / f) for f in files)
        for kind, why in found["left_out"].items():
            if kind in _CAPTIONS:
                by_kind.setdefault(kind, []).append((name, why))
    for kind, found in by_kind.items():
        body += page.heading(kind.capitalize()) + page.paragraph(_CAPTIONS[kind])
        for name, what in found:
            if isinstance(what, Path):
                body += page.picture(what, name, large=kind != "changes")
            else:
                body += page.paragraph(f"{name}: {what}")
    return body


def _other_fusions(others, subjects, first: Subject) -> dict[str, str]:
    """The first run of each other fusion, by its fusion."""
    found = {}
    for name, workdir in others.items():
        fusion = subjects[name].config.model.fusion
        if fusion not in (first.config.model.fusion, "none"):
            found.setdefault(fusion, workdir)
    return found


def _samples(subjects: Mapping[str, Subject]) -> str:
    """What each run says of the same scenes."""
    said = {}
    for name, subject in subjects.items():
        try:
            generator = make_generator(subject, Decoding(max_new_tokens=48))
        except ConfigError as error:
            say(f"no samples of {name}: {error}")
            continue
        asked = _asked(subject)
        prompts = [
            Prompt(question, one.image, number)
            for number, (one, question) in enumerate(asked)
        ]
        said[name] = asked, generator(prompts)
    if not said:
        return ""
    rows = []
    for number in range(_SAMPLES):
        one, question = next(iter(said.values()))[0][number]
        cells = [page.scene(as_png(one.image), one.name)]
        cells.append(f"{question} {one.caption}".strip())
        rows.append([*cells, *(answers[number] for _, answers in said.values())])
    header = ["scene", "right", *said]
    return page.table(header, rows, words=True)


def _asked(subject: Subject) -> list[tuple[Shown, str]]:
    """Scenes of the built-in world, with a question where the run learnt to answer."""
    config = subject.config
    if config.data.source != "tabletop:questions":
        return [(one, "") for one in shown_scenes(config, _SAMPLES, first=100)]
    size = config.model.encoder.image_size
    source = Tabletop("test", image_size=size, text="questions")
    found = []
    for index in range(100, 100 + _SAMPLES):
        sample = source[index]
        question, answer = (segment.text.strip() for segment in sample.segments)
        found.append((Shown(f"scene {index}", sample.image, answer), question))
    return found


def _moved(runs: Mapping[str, str]) -> str:
    found = {
        n: _result(workdir).get("relative_distance", {}) for n, workdir in runs.items()
    }
    parts = dict.fromkeys(part for moved in found.values() for part in moved)
    rows = [
        [
            part,
            *(
                f"{moved[part]:.1e}" if part in moved else ""
                for moved in found.values()
            ),
        ]
        for part in parts
    ]
    intro = "How far each part moved from where its run started, |after - before| / |before|."
    return page.paragraph(intro) + page.table(["part", *runs], rows) if rows else ""


def _configuration(subjects: Mapping[str, Subject]) -> str:
    """The keys that differ; and all of them, folded."""
    flat = {name: dict(_flat(to_dict(one.config))) for name, one in subjects.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    rows = [[key, *(values.get(key, "") for values in flat.values())] for key in keys]
    different = [row for row in rows if len(set(map(str, row[1:]))) > 1]
    header = ["key", *subjects]
    body = page.table(header, different, words=True)
    if len(subjects) == 1:
        body = ""
    return body + page.folded("all keys", page.table(header, rows, words=True))


def _flat(tree: Mapping, prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _certificate(folder: Path) -> str:
    about = json.loads((folder / CERTIFICATE).read_text("utf-8"))
    run = about["run"]
    rows = [("part", about["part"]), ("dtype", about["dtype"])]
    rows.append(("from", f"{run['name']}, step {run['step']}"))
    rows += [("check", line.strip()) for line in summary(about["check"]).splitlines()]
    return page.heading(folder.name) + page.table(["", ""], rows, words=True)


def _charts(folder: str) -> str:
    if not folder:
        return ""
    found = sorted(Path(folder).glob("*.png"))
    if not found:
        raise MissingInputError(f"{folder} has no charts of tools/benchmark.py")
    return "".join(page.picture(path, path.stem) for path in found)


def _result(workdir: str) -> dict:
    return read_json(Path(workdir) / "result.json") or {}


def _number(value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value or "")
