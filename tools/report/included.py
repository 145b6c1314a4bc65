"""Parts of a report: what other commands have written in folders of theirs."""

from pathlib import Path

from hive_jax.errors import DataError, MissingInputError
from hive_jax.evaluation import tables
from hive_jax.export.verify import summary
from hive_jax.io import read_json
from hive_jax.weights.safetensors import EXPORT_REPORT
from tools.report import page, sections

_DEPTHS = "depths.png"
_CHARTS = ("flops", "memory", "step", "input", "peers")


def included(folder: str) -> list[tuple[str, str]]:
    """Returns (heading, HTML) of a folder of hive_jax.compare, hive_jax.probe
    --sweep_depths, tools/export_hf.py or tools.benchmark.

    Raises:
      MissingInputError: it is none of these.
      DataError: it is damaged.
    """
    root, found = Path(folder), []
    if (root / EXPORT_REPORT).is_file():
        found.append((f"Export {root.name}", _export_report(root / EXPORT_REPORT)))
    if (root / tables.COMPARISON).is_file():
        rows = tables.read(root)
        header, *lines = tables.scores(rows)
        body = page.table(header, lines) + sections.comparison(rows)
        found.append(("Comparison", body))
    if (root / _DEPTHS).is_file():
        about = "A linear probe on every depth of each encoder."
        found.append(("Accuracy by depth", page.picture(root / _DEPTHS, about)))
    charts = [root / f"{name}.png" for name in _CHARTS]
    charts = [path for path in charts if path.is_file()]
    if charts := charts + sorted(root.glob("gpu_*.png")):
        body = "".join(page.picture(path, path.stem) for path in charts)
        found.append(("Cost", body))
    if not found:
        raise MissingInputError(
            f"{folder}: expected a folder of hive_jax.compare, of hive_jax.probe "
            "--sweep_depths, of tools/export_hf.py or of tools.benchmark"
        )
    return found


def _export_report(path: Path) -> str:
    try:
        about = read_json(path)
        rows = [("component", about["component"]), ("dtype", about["dtype"])]
        rows.append(("from", f"{about['run']['name']}, step {about['run']['step']}"))
        checks = summary(about["verification"]).splitlines()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no export report: {error!r}") from None
    rows += [("check", line.strip()) for line in checks]
    return page.table(["", ""], rows, words=True)
