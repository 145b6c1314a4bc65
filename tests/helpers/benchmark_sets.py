"""The benchmarks that the built-in world writes, as Hugging Face has them in Parquet."""

import importlib.util
import json
from pathlib import Path

import pytest

from hive_jax.data.tabletop.questions import CLAIMS

COUNT, SEED = 14, 3  # of the benchmarks in tests/evaluation/conftest.py
needs_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow"
)


def as_parquet(source: Path, target: Path) -> None:
    """target/NAME with the rows of source/NAME, for all four."""
    _write(target / "mme/data/test-00000-of-00001.parquet", _mme(source / "mme"))
    questions, images = _gqa(source / "gqa")
    part = target / "gqa/testdev_balanced_"
    _write(Path(f"{part}instructions/testdev-00000-of-00001.parquet"), questions)
    _write(Path(f"{part}images/testdev-00000-of-00001.parquet"), images)
    # Of another configuration, which is not the one to read.
    _write(target / "gqa/train_all_images/train-00000-of-00001.parquet", images[:1])
    rows = _okvqa(source / "okvqa")
    _write(target / "okvqa/data/val2014-00000-of-00002.parquet", rows[:2])
    _write(target / "okvqa/data/val2014-00001-of-00002.parquet", rows[2:])
    rows = _scienceqa(source / "scienceqa")
    part = target / "scienceqa/ScienceQA"
    _write(Path(f"{part}-FULL/test-00000-of-00001.parquet"), rows)
    _write(Path(f"{part}-FULL/train-00000-of-00001.parquet"), rows[:1])
    _write(Path(f"{part}-IMG/test-00000-of-00001.parquet"), rows[:1])


def as_hub_repositories(source: Path, target: Path) -> None:
    """target/NAME with the rows of source/..., as lmms-eval's repositories have them."""
    rows = _scienceqa(source / "scienceqa")
    pictured = [row for row in rows if row["image"]]
    questions, images = _gqa(source / "gqa")
    repositories = {
        "MME": {("default", "test"): _mme(source / "mme")},
        "GQA": {
            ("testdev_balanced_instructions", "testdev"): questions,
            ("testdev_balanced_images", "testdev"): images,
        },
        "OK-VQA": {("default", "val2014"): _okvqa(source / "okvqa")},
        "ScienceQA": {
            ("ScienceQA-FULL", "test"): rows,
            ("ScienceQA-IMG", "test"): pictured,
        },
    }
    for name, tables in repositories.items():
        lines = ["---", "configs:"]
        for (config, split), table in tables.items():
            _write_with_features(target / name / config / f"{split}-0.parquet", table)
            lines += [
                f"- config_name: {config}",
                "  data_files:",
                f"  - split: {split}",
                f"    path: {config}/{split}-*",
            ]
        (target / name / "README.md").write_text("\n".join([*lines, "---", ""]))


def _write_with_features(path: Path, rows: list[dict]) -> None:
    import datasets

    table = datasets.Dataset.from_list(rows)
    if "image" in table.column_names:
        table = table.cast_column("image", datasets.Image())
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)


def _image(path: Path) -> dict:
    return {"bytes": path.read_bytes(), "path": path.name}


def _write(path: Path, rows: list[dict]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, path, row_group_size=3)


def _mme(root: Path) -> list[dict]:
    rows = []
    paths = [p for c in CLAIMS for p in sorted((root / c).glob("**/*.txt"))]
    for path in paths:
        category, name = path.relative_to(root).parts[0], f"{path.stem}.jpg"
        (image,) = (root / category).glob(f"**/{name}")
        for line in path.read_text("utf-8").splitlines():
            question, answer = line.split("\t")
            about = {"question_id": f"{category}/{name}", "image": _image(image)}
            rows.append(
                about | {"question": question, "answer": answer, "category": category}
            )
    return rows


def _gqa(root: Path) -> tuple[list[dict], list[dict]]:
    records = json.loads((root / "testdev_balanced_questions.json").read_text())
    rows = [{"id": name} | record for name, record in records.items()]
    paths = sorted((root / "images").iterdir())
    return rows, [{"id": path.stem, "image": _image(path)} for path in paths]


def _okvqa(root: Path) -> list[dict]:
    path = root / "OpenEnded_mscoco_val2014_questions.json"
    questions = json.loads(path.read_text())["questions"]
    annotated = json.loads((root / "mscoco_val2014_annotations.json").read_text())
    pairs = zip(questions, annotated["annotations"], strict=True)
    return [
        {
            "question_id": str(question["question_id"]),
            "image": _image(
                root / f"val2014/COCO_val2014_{question['image_id']:012d}.jpg"
            ),
            "question": question["question"],
            "answers": [answer["answer"] for answer in one["answers"]],
        }
        for question, one in pairs
    ]


def _scienceqa(root: Path) -> list[dict]:
    problems = json.loads((root / "problems.json").read_text())
    rows = []
    for name, problem in problems.items():
        path = root / "images/test" / name / "image.png"
        rows.append(problem | {"image": _image(path) if problem["image"] else None})
    return rows
