"""The image classification datasets of the paper's table 4, by name.

`food101:DIR` is Food-101 in DIR, as Hugging Face's Parquet files or as the ArrayRecord
that TensorFlow Datasets prepares.
"""

import dataclasses
import glob

from hive_jax.data.sources.base import DataSource, SourceOptions
from hive_jax.data.sources.image_text import open_table
from hive_jax.data.sources.tfds import PREPARE, TfdsSource, default_folder
from hive_jax.errors import ConfigError, MissingInputError


@dataclasses.dataclass(frozen=True)
class CatalogEntry:
    """An image classification dataset.

    Attributes:
      title: its name for people.
      hub: its id at Hugging Face.
      tfds: its name in TensorFlow Datasets; empty where it is not there.
      splits: of either, the one to train on first.
      image, label: columns of the Parquet files.
      note: what to know before the download.
    """

    title: str
    hub: str
    tfds: str
    splits: tuple[str, ...]
    image: str = "image"
    label: str = "label"
    note: str = ""


CATALOG = {
    "cifar10": CatalogEntry(
        "CIFAR-10", "uoft-cs/cifar10", "cifar10", ("train", "test"), image="img"
    ),
    "cifar100": CatalogEntry(
        "CIFAR-100",
        "uoft-cs/cifar100",
        "cifar100",
        ("train", "test"),
        image="img",
        label="fine_label",
    ),
    "imagenet": CatalogEntry(
        "ImageNet-1k",
        "ILSVRC/imagenet-1k",
        "imagenet2012",
        ("train", "validation"),
        note="accept its licence at Hugging Face first; TFDS needs the files of "
        "image-net.org in ~/tensorflow_datasets/downloads/manual",
    ),
    "tiny_imagenet": CatalogEntry(
        "Tiny-ImageNet", "zh-plus/tiny-imagenet", "", ("train", "valid")
    ),
    "food101": CatalogEntry(
        "Food-101", "ethz/food101", "food101", ("train", "validation")
    ),
    "cars": CatalogEntry(
        "Stanford Cars",
        "tanganke/stanford_cars",
        "cars196",
        ("train", "test"),
        note="TFDS cannot download it: the addresses it has are gone",
    ),
    "pets": CatalogEntry(
        "Oxford-IIIT Pets", "timm/oxford-iiit-pet", "oxford_iiit_pet", ("train", "test")
    ),
    "caltech256": CatalogEntry(
        "Caltech-256", "ilee0022/Caltech-256", "", ("train", "validation")
    ),
}

# Folders between that of a dataset and its files: none, "data/" or a configuration's,
# or both. Deeper ones are not searched: the folder may be a whole disk.
_DEPTHS = ("", "*/", "*/*/")


def open_catalog(
    name: str, folder: str, options: SourceOptions, *, split: str = ""
) -> DataSource:
    """Opens a dataset of the catalog.

    Args:
      name: a key of CATALOG.
      folder: that holds it; empty for TFDS's own folder.
      options: of the run.
      split: one of the dataset's; empty for the first, to train on.

    Raises:
      ConfigError: the dataset has no such split.
      MissingInputError: the folder holds neither its Parquet files nor its ArrayRecord;
        the message says how to download it.
    """
    entry = CATALOG[name]
    split = split or entry.splits[0]
    if split not in entry.splits:
        raise ConfigError(
            f"config.data.source: {name} has the splits {', '.join(entry.splits)}; "
            f"split is {split!r}"
        )
    # Parquet first: it needs one package, TFDS two.
    for below in _DEPTHS if folder else ():
        files = f"{glob.escape(folder)}/{below}{split}-*.parquet"
        if next(glob.iglob(files), None):
            return open_table(files, options, image=entry.image, label=entry.label)
    if entry.tfds and _holds_tfds(folder, entry.tfds):
        return TfdsSource(
            entry.tfds, options, dir=folder, split=split, image="image", text="label"
        )
    raise MissingInputError(f"data.source: {_how_to_download(name, folder, split)}")


def _holds_tfds(folder: str, tfds: str) -> bool:
    return any(glob.iglob(f"{glob.escape(folder or default_folder())}/{tfds}/*"))


def _how_to_download(name: str, folder: str, split: str) -> str:
    entry = CATALOG[name]
    local = folder or f"DIR, as in {name}:DIR"
    lines = [
        f"{entry.title} is not in {folder or 'TFDS'}: expected {split}-*.parquet"
        + (f", or TFDS's {entry.tfds}/" if entry.tfds else ""),
        f"  hf download {entry.hub} --repo-type dataset --local-dir {local}",
    ]
    if entry.tfds:
        command = PREPARE.replace("NAME", repr(entry.tfds))
        lines.append(f"  or, with tensorflow installed: {command}")
    if entry.note:
        lines.append(f"  {entry.note}")
    return "\n".join(lines)
