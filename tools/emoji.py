"""Downloads emoji by three artists and writes them as a dataset.

python tools/emoji.py --out emoji

Two artists are for training and the third is held out, so that a probe measures what an
encoder knows of the things drawn, and not of a style. Writes:

  train/CLASS/*.png    Noto (Google) and Twemoji (Twitter), a folder for each class
  test/CLASS/*.webp    Fluent (Microsoft), the same classes
  chat.json            LLaVA records of train/, the name of each emoji as its caption

The packages come from the npm registry and are checked against their hashes. The
drawings: Noto Emoji, Apache 2.0; Twemoji, CC BY 4.0; Fluent Emoji, MIT.
"""

import argparse
import base64
import collections
import hashlib
import http.client
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hive_jax.console import log, report_errors
from hive_jax.errors import DataError, MissingInputError
from hive_jax.io import atomic_dir, atomic_write, write_json
from hive_jax.json_text import parse_json

REGISTRY = "https://registry.npmjs.org"
# Fewer emoji than this make no class: a test needs several images of each.
CLASS_SIZE = 10


class Package(NamedTuple):
    """A package of one artist's drawings.

    Attributes:
      artist: name in file names.
      name: on the npm registry.
      version: pinned, for its hash.
      sha512: base64, as the registry publishes it.
      images: name of an emoji's image in the archive; `{code}` is its lower-case
        code points, joined by hyphens.
    """

    artist: str
    name: str
    version: str
    sha512: str
    images: str


TRAIN = (
    Package(
        "noto",
        "emoji-datasource-google",
        "16.0.0",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8"
        "DlPhfQ3A==",
        "package/img/google/64/{code}.png",
    ),
    Package(
        "twemoji",
        "emoji-datasource-twitter",
        "16.0.0",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBb"
        "uL2eyELQ==",
        "package/img/twitter/64/{code}.png",
    ),
)
TEST = Package(
    "fluent",
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60"
    "lUAG3h7g==",
    "package/assets/{code}.webp",
)
LIST_OF_EMOJI = "package/emoji.json"  # of the first package; all versions share it


class Emoji(NamedTuple):
    """An emoji's code points, name and class."""

    code: str
    name: str
    label: str


def download(package: Package, folder: Path) -> Path:
    """Returns the archive of a package, downloaded unless `folder` has it.

    Args:
      package: to download.
      folder: of the archives.

    Raises:
      MissingInputError: the registry cannot be reached.
      DataError: the archive has another hash.
    """
    file = f"{package.name.split('/')[-1]}-{package.version}.tgz"
    path, url = folder / file, f"{REGISTRY}/{package.name}/-/{file}"
    if not path.is_file():
        log(f"downloading {url}")
        try:
            with urllib.request.urlopen(url) as response:
                content = response.read()
        except (OSError, http.client.HTTPException) as error:  # on the way, too
            raise MissingInputError(
                f"{url} could not be downloaded ({error}); download it elsewhere and "
                f"put it at {path}"
            ) from error
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    sha512 = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if sha512 != package.sha512:
        raise DataError(
            f"{path} is damaged, or another version: its SHA-512 is {sha512}, expected "
            f"{package.sha512}; delete it and run the command again"
        )
    return path


def read_images(archive: Path, package: Package) -> dict[str, bytes]:
    """Returns code -> encoded image.

    Args:
      archive: the package's .tgz.
      package: for the names of its images.
    """
    before, after = package.images.split("{code}")
    images = {}
    with tarfile.open(archive) as members:
        for member in members:
            if member.name.startswith(before) and member.name.endswith(after):
                code = member.name[len(before) : -len(after)]
                images[code] = members.extractfile(member).read()
    return images


def read_list(archive: Path) -> list[Emoji]:
    """Returns the emoji of an emoji-datasource package, in the order of the list."""
    with tarfile.open(archive) as members:
        text = members.extractfile(LIST_OF_EMOJI).read()
    rows = parse_json(text, archive / LIST_OF_EMOJI)
    return [
        Emoji(row["unified"].lower(), row["name"].lower(), row["subcategory"])
        for row in rows
    ]


def with_classes(emoji: list[Emoji]) -> Iterator[Emoji]:
    """Yields the emoji of classes with at least CLASS_SIZE of them."""
    sizes = collections.Counter(one.label for one in emoji)
    return (one for one in emoji if sizes[one.label] >= CLASS_SIZE)


def record(image: str, emoji: Emoji) -> dict:
    """Returns the LLaVA record of an image: its name and its class as the caption."""
    caption = f"{emoji.name}, {emoji.label.replace('-', ' ')}"
    return {
        "image": image,
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": caption},
        ],
    }


def write_dataset(train: tuple, test: Package, packages: Path, out: Path) -> list[dict]:
    """Writes train/, test/ and chat.json; returns the records of chat.json.

    Args:
      train: packages to train on; the first has the list of emoji.
      test: the package to hold out.
      packages: folder of their archives.
      out: folder to write; must not exist.

    Raises:
      MissingInputError, DataError: see `download`.
      OutputError: `out` exists, or cannot be written.
    """
    archives = {package: download(package, packages) for package in (*train, test)}
    images = {package: read_images(archives[package], package) for package in archives}
    # Only what all artists have drawn, so that train and test have the same classes.
    drawn = set.intersection(*(set(codes) for codes in images.values()))
    emoji = [one for one in read_list(archives[train[0]]) if one.code in drawn]
    records = []
    with atomic_dir(out) as folder:
        for one in with_classes(emoji):
            for package in archives:
                split = "test" if package is test else "train"
                suffix = Path(package.images).suffix
                name = f"{one.label}/{package.artist}_{one.code}{suffix}"
                path = folder / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(images[package][one.code])
                if split == "train":
                    records.append(record(name, one))
        write_json(folder / "chat.json", records)
    return records


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", default="emoji", help="folder to write (default: emoji)"
    )
    parser.add_argument(
        "--packages",
        default="emoji_packages",
        help="folder of the archives, which are kept (default: emoji_packages)",
    )
    options = parser.parse_args(arguments)
    packages = Path(options.packages)
    packages.mkdir(parents=True, exist_ok=True)
    records = write_dataset(TRAIN, TEST, packages, Path(options.out))
    classes = {r["image"].split("/")[0] for r in records}
    log(f"{options.out}: {len(records)} images to train on, {len(classes)} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
