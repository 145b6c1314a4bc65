"""Sections of a report from the output folders of other commands."""

from pathlib import Path

from hive_jax.errors import DataError, MissingInputError
from hive_jax.evaluation import tables
from hive_jax.export.verify import summary
from hive_jax.io import read_json
from hive_jax.weights.safetensors import EXPORT_REPORT
from tools.report import page, sections

_DEPTHS = "depths.png"
# NAME.png of tools.benchmark; those of its command gpu begin with "gpu_".
_CHARTS = ("flops", "memory", "step", "input", "peers")


def included(folder: str) -> list[tuple[str, str]]:
    """Returns (heading, HTML) of a folder of hive_jax.compare, hive_jax.probe
    --sweep_depths, tools/export_hf.py or tools.benchmark.

    Raises:
      MissingInputError: it is none of these.
      DataError: it is damaged.
    """
    root, blocks = Path(folder), []
    # Known by their files; a folder may hold several kinds.
    if (root / EXPORT_REPORT).is_file():
        blocks.append((f"Export {root.name}", _export_report(root / EXPORT_REPORT)))
    if (root / tables.COMPARISON).is_file():
        rows = tables.read(root)
        header, *lines = tables.scores(rows)
        body = page.table(header, lines) + sections.comparison(rows)
        blocks.append(("Comparison", body))
    if (root / _DEPTHS).is_file():
        about = "A linear probe on every depth of each encoder."
        blocks.append(("Accuracy by depth", page.picture(root / _DEPTHS, about)))
    charts = [root / f"{name}.png" for name in _CHARTS]
    charts = [path for path in charts if path.is_file()]
    if charts := charts + sorted(root.glob("gpu_*.png")):
        body = "".join(page.picture(path, path.stem) for path in charts)
        blocks.append(("Cost", body))
    if not blocks:
        raise MissingInputError(
            f"{folder}: expected a folder of hive_jax.compare, of hive_jax.probe "
            "--sweep_depths, of tools/export_hf.py or of tools.benchmark"
        )
    return blocks


def _export_report(path: Path) -> str:
    try:
        about = read_json(path)
        rows = [("component", about["component"]), ("dtype", about["dtype"])]
        rows.append(("from", f"{about['run']['name']}, step {about['run']['step']}"))
        checks = summary(about["verification"]).splitlines()
    # Valid JSON of another shape raises KeyError or TypeError.
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected an export report: {error!r}") from None
    rows += [("check", line.strip()) for line in checks]
    return page.table(["", ""], rows, words=True)
