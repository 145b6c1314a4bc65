"""Small sets in LLaVA's format: a folder, a zip and Parquet of the same images."""

import json
import zipfile
from pathlib import Path

from tools.fault_suite.image_files import encoded, photograph

COUNT = 10  # records of a set that tests share


def record(number: int, **changes) -> dict:
    turns = [
        {"from": "human", "value": "Give a brief description.\n<image>"},
        {"from": "gpt", "value": f" caption number {number} "},
    ]
    return {
        "id": str(number),
        "image": f"{number % 3}/{number}.jpg",
        "conversations": turns,
    } | changes


def text_record(number: int) -> dict:
    """The same conversation without an image."""
    turns = [
        {"from": "human", "value": "Give a brief description."},
        {"from": "gpt", "value": f" caption number {number} "},
    ]
    return record(number, image=None, conversations=turns)


def write_set(folder: Path, files: dict[str, bytes], records: list[dict]) -> dict:
    """Writes it in every form; name of the form -> data.source."""
    (folder / "chat.json").write_text(json.dumps(records))
    lines = "".join(json.dumps(one) + "\n" for one in records)
    (folder / "chat.jsonl").write_text(lines)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name, content in files.items():
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            archive.writestr(name, content)
    chat, images = folder / "chat", folder / "images"
    return {
        "folder": f"llava:{chat}.json,images={images}",
        "lines": f"llava:{chat}.jsonl,images={images}",
        "zip": f"llava:{chat}.json,images={images}.zip",
    }


def write_damaged_set(folder: Path, count: int) -> dict:
    """`write_set` with text alone in record 5, and samples 6, 8 and 9 of no use: without
    a conversation, a file that is not an image, and a missing file."""
    files = {record(i)["image"]: encoded(photograph(i)) for i in range(count)}
    records = [record(i) for i in range(count)]
    records[5] = text_record(5)
    records[6]["conversations"] = []
    files[record(8)["image"]] = b"<html>"
    files.pop(record(9)["image"])
    return write_set(folder, files, records)


def write_parquet(folder: Path, files: dict[str, bytes], records: list[dict]) -> str:
    """The same as two Parquet files with three rows to a group; its data.source."""
    import pyarrow
    import pyarrow.parquet

    rows = []
    for one in records:
        name = one["image"]
        image = None if name is None else {"bytes": files[name], "path": name}
        rows.append(one | {"image": image})
    target = folder / "parquet"
    target.mkdir()
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        table = pyarrow.Table.from_pylist(part)
        path = target / f"train-{number}.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=3)
    return f"llava:{target}"
