"""Checks every sample of a dataset before anybody trains on it; changes nothing."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from hive_jax.data.dataset_report import DatasetReport, SampleSettings
from hive_jax.data.image_io import ImageInfo, inspect_image
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.loader import read_row
from hive_jax.data.parallel import ordered_map
from hive_jax.data.sample_encoding import count_tokens, truncate_text
from hive_jax.data.sources.base import DataSource
from hive_jax.data.transforms import pads
from hive_jax.data.types import Sample

_CAPTION_CHARACTERS = 60


def validate_source(
    source: DataSource,
    settings: SampleSettings,
    threads: int,
    progress: Callable[[int], None],
) -> DatasetReport:
    """Reads every sample of a dataset as a run does.

    Args:
      source: the dataset.
      settings: of the run.
      threads: that read.
      progress: called with the number of samples done since the last call.
    """
    report = DatasetReport(settings, notes=source.notes)
    images, captions = set(), _Captions()
    # A class without a sample is the rarest.
    report.classes.update(dict.fromkeys(source.classes, 0))

    def check(index: int):
        try:
            return _check_sample(source, index, settings)
        except InvalidSample as invalid:
            return invalid

    for index, result in enumerate(ordered_map(check, range(len(source)), threads)):
        report.samples += 1
        progress(1)
        if isinstance(result, InvalidSample):
            line = {"index": index, "reason": result.reason, "where": result.where}
            report.invalid.append(line | {"detail": result.detail})
            continue
        report.tokens.append(result.tokens)
        report.long += result.is_long
        report.cut += result.is_long or result.tokens > settings.num_tokens
        report.classes.update([result.label] if result.label else [])
        captions.add(result.caption)
        if result.image is None:
            report.text_alone += 1
            continue
        report.modes[result.info.mode] += 1
        report.transparent += result.info.is_transparent
        report.rotated += result.info.is_rotated
        if result.info.brightest is not None:
            report.brightest.append(result.info.brightest)
        report.repeated += result.image in images
        images.add(result.image)
    report.captions = captions.repeated()
    return report


class _Captions:
    """Counts equal texts, of which it keeps a hash and the start of those repeated."""

    # A dataset may have hundreds of millions of captions; nearly all occur once.
    def __init__(self):
        self._counts, self._texts = collections.Counter(), {}

    def add(self, text: str) -> None:
        key = hashlib.sha256(text.encode()).digest()[:12]
        self._counts[key] += 1
        if self._counts[key] > 1 and key not in self._texts:
            self._texts[key] = text[:_CAPTION_CHARACTERS]

    def repeated(self) -> collections.Counter:
        counts = collections.Counter()
        for key, text in self._texts.items():
            counts[text] += self._counts[key]
        return counts


@dataclasses.dataclass(frozen=True)
class _Checked:
    """What is counted of a valid sample.

    Attributes:
      caption: its supervised text.
      label: its class; empty for none.
      tokens: before any cut.
      is_long: whether only the start of its text is tokenised.
      image: hash of its image; None without one.
      info: of its image; None without one.
    """

    caption: str
    label: str
    tokens: int
    is_long: bool
    image: bytes | None
    info: ImageInfo | None


def _check_sample(source: DataSource, index: int, settings: SampleSettings) -> _Checked:
    """Reads a sample. Raises InvalidSample."""
    sample, _ = read_row(
        source,
        index,
        settings.tokenizer,
        settings.num_tokens,
        image_size=settings.image_size,
        preprocessing=settings.preprocessing,
    )
    start = truncate_text(sample, settings.num_tokens)
    return _Checked(
        caption=_caption(start),
        label=sample.label,
        tokens=count_tokens(start, settings.tokenizer),
        is_long=start is not sample,
        image=None if sample.image is None else hashlib.sha256(sample.image).digest(),
        info=_image_info(sample.image, source.describe(index), settings),
    )


def _caption(sample: Sample) -> str:
    texts = (segment.text.strip() for segment in sample.segments if segment.target)
    return " ".join(texts)


def _image_info(
    image: np.ndarray | bytes | None, where: str, settings: SampleSettings
) -> ImageInfo | None:
    if image is None:
        return None
    if isinstance(image, np.ndarray):  # rendered, not decoded
        return ImageInfo("RGB", False, False, None)
    return inspect_image(image, where, pads(settings.preprocessing))
