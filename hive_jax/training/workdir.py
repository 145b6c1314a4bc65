"""Files of a workdir that derive from the run, and are written anew if damaged."""

import time

from hive_jax.console import log
from hive_jax.errors import HiveError
from hive_jax.io import move, path_exists, read_json

_FILES = ("config.json", "metrics.jsonl", "bad_samples.jsonl", "result.json")
_FOLDERS = ("tokenizer", "tensorboard")


def set_aside_unusable(workdir) -> None:
    """Renames files and folders of the wrong kind, e.g. a folder named metrics.jsonl.

    Args:
      workdir: path of the run's folder.

    Raises:
      OutputError: it cannot be renamed.
    """
    for name in (*_FILES, *_FOLDERS):
        path, is_folder = workdir / name, name in _FOLDERS
        is_usable = path.is_dir() if is_folder else path.is_file()
        if path_exists(path) and not is_usable:
            renamed = f"{name}.damaged-{int(time.time())}"
            move(path, workdir / renamed)
            kind = "folder" if is_folder else "file"
            log(f"{path} is not a {kind}: renamed to {renamed} and written anew")


def is_final(path, step: int) -> bool:
    """Returns whether result.json is the result of a step.

    Args:
      path: the file.
      step: last step of the run.
    """
    if not path.exists():
        return False
    try:
        result = read_json(path)
    except HiveError as error:
        log(f"{error}; written anew")
        return False
    is_result = result.get("step") == step and isinstance(
        result.get("validation"), dict
    )
    if not is_result:
        log(f"{path} is not the result of step {step}: written anew")
    return is_result
