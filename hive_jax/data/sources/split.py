"""Held-out samples: a validation split that shares no image with the train split."""

from collections.abc import Sequence

import numpy as np

from hive_jax.data.sources.base import DataSource, Subset
from hive_jax.errors import DataError


def train_validation_splits(
    sources: Sequence[DataSource], sizes: Sequence[int]
) -> tuple[list[Subset], list[Subset]]:
    """Holds out images at equal distances, with all samples of each.

    At equal distances, so that a sorted dataset splits evenly too. An image may have
    several captions, and several sources may share it: a model that trains on one of
    these samples has seen the image, so all of them are left out of the train split. A
    sample without an image counts as one of its own.

    Args:
      sources: the datasets.
      sizes: number of held-out samples of each.

    Returns:
      The train split and the validation split of each source.

    Raises:
      DataError: nothing of a source is left to train on.
    """
    names = [[s.image_name(i) for i in range(len(s))] for s in sources]
    held_out = [
        _choose(source, group_samples(image_names), size)
        for source, image_names, size in zip(sources, names, sizes, strict=True)
    ]
    images = {
        image_names[index]
        for image_names, chosen in zip(names, held_out, strict=True)
        for index in chosen.tolist()
    } - {None}  # samples without an image share nothing
    train, validation = [], []
    everything = zip(sources, names, held_out, sizes, strict=True)
    for source, image_names, chosen, size in everything:
        is_left = np.array([name not in images for name in image_names])
        is_left[chosen] = False
        if not is_left.any():
            raise DataError(
                f"{_file(source)}: all {len(source)} samples are of the images that "
                f"data.validation_size = {size} holds out; choose a smaller one"
            )
        train.append(Subset(source, np.flatnonzero(is_left)))
        # Of the last image some samples may be in neither split.
        validation.append(Subset(source, chosen[:size]))
    return train, validation


def group_samples(image_names: Sequence[str | None]) -> np.ndarray:
    """Returns for each sample the first with the same image, int64[len(image_names)].

    Args:
      image_names: of each sample; None makes it the only one of its image.
    """
    first = {}
    groups = [
        index if name is None else first.setdefault(name, index)
        for index, name in enumerate(image_names)
    ]
    return np.array(groups, np.int64)


def _choose(source: DataSource, groups: np.ndarray, size: int) -> np.ndarray:
    """The samples of the fewest images at equal distances that have `size` samples."""
    if len(groups) <= size:
        raise DataError(
            f"{_file(source)}: {len(groups)} samples; expected more than the {size} that "
            f"data.validation_size holds out: set it to {max(2, len(groups) // 10)}, say"
        )
    images, counts = np.unique(groups, return_counts=True)
    # By the mean number of samples an image; as chosen images may have fewer, more follow.
    number = max(1, size * len(images) // len(groups))
    while counts[_equal_distances(number, len(images))].sum() < size:
        number += 1
    chosen = images[_equal_distances(number, len(images))]
    return np.flatnonzero(np.isin(groups, chosen))


def _equal_distances(number: int, total: int) -> np.ndarray:
    return np.arange(number) * total // number


def _file(source: DataSource) -> str:
    return source.describe(0).split(", record")[0]
