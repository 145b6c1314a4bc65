"""Datasets of the Hugging Face hub, or of a folder in its layout, through `datasets`.

The package prepares Arrow files in its cache and maps them into memory, so that any row
is read without its neighbours. Since its version 4 it runs no code of a dataset.
"""

import contextlib
import os

from hive_jax.data.sources.base import DataSource, SourceOptions
from hive_jax.data.sources.conversations import TURN_KEYS, means_image
from hive_jax.data.sources.hub_table import HubTable
from hive_jax.data.sources.image_text import NO_IMAGE, choose_column, source_of_rows
from hive_jax.data.sources.llava import LlavaSource
from hive_jax.errors import ConfigError, DataError, MissingInputError

# Written by `Dataset.save_to_disk` and `DatasetDict.save_to_disk`.
_SAVED = ("state.json", "dataset_dict.json")


def open_hub(
    path: str,
    options: SourceOptions,
    *,
    config: str = "",
    split: str = "train",
    revision: str = "",
    image: str = "",
    text: str = "",
    label: str = "",
    form: str = "",
) -> DataSource:
    """Opens a dataset of conversations, captions or classes.

    Args:
      path: the hub id, "org/name", or a folder.
      options: of the run.
      config: of the dataset, where it has several.
      split: in the syntax of `datasets`, "train" or "train[:10%]".
      revision: branch, tag or commit of the hub; empty for the newest.
      image: the column of the images; empty for the only one, "none" for texts alone.
      text: the column of the texts.
      label: the column of the classes. Without `text` and `label`, the conversations,
        or the column "text" or "label".
      form: of conversations, "plain" (as an empty one) or "chat".

    Raises:
      MissingInputError: the dataset or the package is missing.
      ConfigError: `form` is given, and there are no conversations.
      DataError: it has no such config, split or column.
    """
    name = f"hf:{path}, {split}"
    rows, root = _load(path, config, split, revision)
    table = HubTable(name, rows, root)
    image = image or _only_image_column(table)
    images = None if image == NO_IMAGE else table.images(image)
    turns = [column for column in TURN_KEYS if column in table.columns]
    if turns and not (text or label):
        counts = images.counts() if images else [0] * len(table)
        rows = zip(table.values(turns[0]), counts, strict=True)
        records = [
            {turns[0]: value, "image": [str(row)] * count}
            for row, (value, count) in enumerate(rows)
        ]
        return LlavaSource(name, records, images, options, form or "plain")
    if form:
        raise ConfigError(
            f"{name}: form={form} is for conversations; it has the columns "
            f"{', '.join(table.columns)}"
        )
    column, is_class = choose_column(name, table.columns, image, text, label)
    classes = table.class_names(column) if is_class else None
    return source_of_rows(name, column, table.values(column), images, options, classes)


def _only_image_column(table: HubTable) -> str:
    names = table.image_columns()
    if len(names) > 1:
        raise DataError(
            f"{table.path} has several columns of images; choose one: "
            + " or ".join(f"image={name}" for name in names)
        )
    if not names and any(map(means_image, table.columns)):
        raise DataError(
            f"{table.path} has the columns {', '.join(table.columns)}, and none holds "
            f"images; image=none reads texts alone"
        )
    return names[0] if names else NO_IMAGE


def _load(path: str, config: str, split: str, revision: str):
    """(datasets.Dataset, folder of the files that its rows name)"""
    try:
        import datasets
        from huggingface_hub import constants
    except ImportError:
        raise MissingInputError(
            "hf needs the package datasets: pip install 'datasets>=4'"
        ) from None
    if os.path.isfile(path):
        raise DataError(
            f"hf:{path} is a file; expected a hub id or a folder. Use table: or "
            f"llava: for a file"
        )
    # A folder goes first, as in `datasets`; a hub id has one slash at most.
    is_folder = os.path.isdir(path)
    if not is_folder and (path.count("/") > 1 or path.startswith(("/", "."))):
        raise MissingInputError(
            f"data.source: {path}: no such folder, and not a hub id, ORG/NAME"
        )
    try:
        if any(os.path.isfile(os.path.join(path, name)) for name in _SAVED):
            return _saved_split(datasets.load_from_disk(path), split), path
        rows = _load_rows(path, config or None, split, revision or None)
        return rows, path if is_folder else constants.HF_HUB_CACHE
    except Exception as error:
        # Of any type: of the reader of each format, the network and the cache. Only what
        # the package itself raises has a common base, which is Exception.
        reason = " ".join(str(error).split()) or repr(error)
        if is_folder or not isinstance(error, OSError):
            raise DataError(
                f"hf:{path}: {reason.rstrip('.')}; check config={config} and split={split}"
            ) from error
        raise MissingInputError(
            f"hf:{path} is not a folder here, and could not be downloaded from the hub: "
            f"{reason}. Check the name and the network; for a gated dataset accept its "
            f"terms at https://huggingface.co/datasets/{path}, then `hf auth login`"
        ) from error


def _saved_split(saved, split: str):
    """A split of what `save_to_disk` has written. Raises ValueError."""
    splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    if split not in splits:
        raise ValueError(f"expected one of the splits {', '.join(splits)}")
    return splits[split]


def _load_rows(path: str, config: str | None, split: str, revision: str | None):
    """The rows of a hub id or folder. Raises the errors of `datasets`."""
    import datasets
    from huggingface_hub import snapshot_download

    try:
        return datasets.load_dataset(path, config, split=split, revision=revision)
    except OSError:
        if os.path.isdir(path):
            raise
        # Without a network: what `hf download` has left in the cache of the hub, where
        # `datasets` does not look.
        with contextlib.suppress(OSError, ValueError):  # not cached, or not a hub id
            path = snapshot_download(
                path, repo_type="dataset", revision=revision, local_files_only=True
            )
        if not os.path.isdir(path):
            raise
    return datasets.load_dataset(path, config, split=split)
