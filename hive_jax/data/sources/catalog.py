"""The sets of the paper's table 4 by their names: where each comes from, how it is had.

`food101:DIR` is the set in DIR, either the Parquet files that Hugging Face has, or the
ArrayRecord that TensorFlow Datasets prepares.
"""

import dataclasses
import glob

from hive_jax.data.sources.tfds import PREPARE
from hive_jax.errors import ConfigError, MissingInputError


@dataclasses.dataclass(frozen=True)
class CatalogEntry:
    """A set of images with a class each.

    Attributes:
      title: what it is.
      hub: the id at Hugging Face.
      tfds: the name in TensorFlow Datasets; empty where it is not there.
      splits: of either.
      image, label: the columns of the Parquet files.
      caution: what one should know before.
    """

    title: str
    hub: str
    tfds: str
    splits: tuple[str, ...]
    image: str = "image"
    label: str = "label"
    caution: str = ""


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
        caution="its licence is to be accepted at Hugging Face; TFDS wants the files "
        "of image-net.org in ~/tensorflow_datasets/downloads/manual",
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
        caution="TFDS cannot download it, for the addresses it has are gone",
    ),
    "pets": CatalogEntry(
        "Oxford-IIIT Pets", "timm/oxford-iiit-pet", "oxford_iiit_pet", ("train", "test")
    ),
    "caltech256": CatalogEntry(
        "Caltech-256", "ilee0022/Caltech-256", "", ("train", "validation")
    ),
}


def resolve(name: str, folder: str, split: str) -> tuple[str, str, dict[str, str]]:
    """(kind, path, options) of the source that has a set.

    Args:
      name: a key of CATALOG.
      folder: that the set is in; empty for TFDS's own.
      split: one of the set's; empty for the first, to train on.

    Raises:
      ConfigError: the set has no such split.
      MissingInputError: the folder has no Parquet of it, and TFDS does not know it; says
        how it is had.
    """
    one = CATALOG[name]
    split = split or one.splits[0]
    if split not in one.splits:
        raise ConfigError(
            f"config.data.source: {name} has the splits {', '.join(one.splits)}; "
            f"split is {split!r}"
        )
    files = f"{glob.escape(folder)}/**/{split}-*.parquet"
    if folder and next(glob.iglob(files, recursive=True), None):
        return "table", files, {"image": one.image, "label": one.label}
    if one.tfds and _is_tfds(folder, one.tfds):
        options = {"split": split, "image": "image", "text": "label"}
        return "tfds", one.tfds, options | ({"dir": folder} if folder else {})
    raise MissingInputError(f"data.source: {_how(name, folder, split)}")


def _is_tfds(folder: str, tfds: str) -> bool:
    return not folder or any(glob.iglob(f"{glob.escape(folder)}/{tfds}/*"))


def _how(name: str, folder: str, split: str) -> str:
    one = CATALOG[name]
    place = folder or f"DIR, as in {name}:DIR"
    lines = [
        f"{one.title} is not in {folder or 'TFDS'}: expected {split}-*.parquet"
        + (f", or TFDS's {one.tfds}/" if one.tfds else ""),
        f"  hf download {one.hub} --repo-type dataset --local-dir {place}",
    ]
    if one.tfds:
        command = PREPARE.replace("NAME", repr(one.tfds))
        lines.append(f"  or, with tensorflow installed: {command}")
    if one.caution:
        lines.append(f"  {one.caution}")
    return "\n".join(lines)
