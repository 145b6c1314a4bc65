"""Where TensorFlow Datasets keeps what it has prepared: FOLDER/NAME[/CONFIG]/VERSION.

Sets are opened by what stands in these folders. The code that made them, which most
often needs TensorFlow, is not imported.
"""

import os
import re
from pathlib import Path

from hive_jax.errors import MissingInputError

PREPARE = "tfds.builder(NAME, file_format='array_record').download_and_prepare()"
_FILE = "features.json"  # that each version has


def open_builder(tfds, name: str, folder: str):
    """The set as TFDS's builder.

    Args:
      tfds: the module.
      name: NAME[/CONFIG][:VERSION], or the folder of a version.
      folder: that has the sets; empty for TFDS's own.

    Raises:
      MissingInputError: it is not there.
    """
    place = Path(name)
    if not (place / _FILE).is_file():
        place = _newest(name, Path(folder or _default_folder()))
    try:
        builder = tfds.builder_from_directory(str(place))
        if builder.info.splits:
            return builder
        why = f"nothing is prepared in {place}"
    except Exception as error:  # noqa: BLE001 (of every kind, by what is damaged)
        why = f"{place}: {str(error).splitlines()[0] if str(error) else repr(error)}"
    raise _missing(name, why)


def _default_folder() -> str:
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def _newest(name: str, root: Path) -> Path:
    """The folder of the version, or of the newest."""
    path, _, version = name.partition(":")
    found = [file.parent for file in root.glob(f"{_escaped(path)}/*/{_FILE}")]
    if not found:
        configs = root.glob(f"{_escaped(path)}/*/*/{_FILE}")
        names = sorted({f"{path}/{file.parts[-3]}" for file in configs})
        if names:
            raise _missing(name, f"it has configs, {', '.join(names)}")
        raise _missing(name, f"{root / path} has no prepared version")
    known = {place.name: place for place in found}
    if version and version not in known:
        raise _missing(name, f"its versions are {', '.join(sorted(known))}")
    return known[version or max(known, key=_as_numbers)]


def _escaped(path: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", path.strip("/"))


def _as_numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _missing(name: str, why: str) -> MissingInputError:
    return MissingInputError(
        f"tfds:{name} is not there: {why}. Prepare it with {PREPARE}, or name the "
        f"folder of a version of it"
    )
