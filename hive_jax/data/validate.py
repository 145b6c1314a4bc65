"""Checks every sample of a dataset before anybody trains on it; changes nothing."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hive_jax.data.image_io import image_mode
from hive_jax.data.invalid import InvalidSample, format_counts
from hive_jax.data.parallel import ordered_map
from hive_jax.data.sources.base import DataSource
from hive_jax.data.tokenizer import (
    Tokenizer,
    count_tokens,
    encode_sample,
    truncate_text,
)
from hive_jax.data.transforms import decode
from hive_jax.io import atomic_write, json_lines, write_json, write_text

_IMAGE_SIZE = 32  # images are only decoded to see that they can be
_MAX_HISTOGRAM = 4000  # tokens


@dataclasses.dataclass
class DatasetReport:
    """Statistics of a dataset and its invalid samples.

    Attributes:
      num_tokens: of a sample in training; longer text is cut.
      samples: number of all samples.
      invalid: {index, reason, where, detail} of each that cannot be used.
      text_alone: samples without an image.
      modes: PIL's image mode -> samples; all but RGB are converted when read.
      repeated: samples whose image is, bit for bit, that of an earlier one.
      tokens: of each valid sample, before any cut; the begin-of-sequence token counts.
      long: samples of so much text that its end is not even tokenised, in training and
        here; see tokenizer.truncate_text.
      cut: samples of more than `num_tokens` tokens, and the long ones.
      notes: lines on what the dataset left out.
    """

    num_tokens: int
    samples: int = 0
    invalid: list[dict] = dataclasses.field(default_factory=list)
    text_alone: int = 0
    modes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    repeated: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    long: int = 0
    cut: int = 0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        """Returns the report as JSON values, without the list of invalid samples."""
        counts = np.asarray(self.tokens or [0])
        percentiles = (0, 5, 50, 95, 100)
        reasons = collections.Counter(sample["reason"] for sample in self.invalid)
        return {
            "samples": self.samples,
            "bad": len(self.invalid),
            "bad_by_reason": dict(reasons.most_common()),
            "text_alone": self.text_alone,
            "image_modes": dict(self.modes.most_common()),
            "repeated_images": self.repeated,
            "num_tokens": self.num_tokens,
            "cut": self.cut,
            "long_texts": self.long,
            "notes": list(self.notes),
            "tokens": {
                f"{p}%": int(value)
                for p, value in zip(
                    percentiles, np.percentile(counts, percentiles), strict=True
                )
            },
        }

    def to_text(self) -> str:
        """Formats the report as text for the terminal."""
        report = self.to_dict()
        reasons = f" ({format_counts(report['bad_by_reason'])})" * bool(self.invalid)
        low, middle, high = (report["tokens"][p] for p in ("0%", "50%", "100%"))
        return "\n".join(
            [
                f"samples          {self.samples:,}",
                f"cannot be used   {len(self.invalid):,}{reasons}",
                f"text alone       {self.text_alone:,}",
                f"image modes      {format_counts(report['image_modes'])}",
                f"repeated images  {self.repeated:,}",
                f"tokens           {low} to {high}, median {middle}",
                f"cut              {self.cut:,}, of more than {self.num_tokens} tokens",
                f"long texts       {self.long:,}, of which only the start was tokenised",
                *self.notes,
            ]
        )

    def write(self, folder: Path) -> None:
        """Writes report.json, bad_samples.jsonl and tokens.png. Raises OutputError."""
        from matplotlib.figure import Figure

        write_json(folder / "report.json", self.to_dict())
        write_text(folder / "bad_samples.jsonl", json_lines(self.invalid))
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        longest = max(self.tokens, default=1)
        axes.hist(self.tokens, bins=np.arange(min(longest, _MAX_HISTOGRAM) + 2) - 0.5)
        axes.axvline(self.num_tokens + 0.5, color="black", linestyle="--")
        axes.set_title(
            f"{self.cut} of {self.samples} are cut at {self.num_tokens} tokens"
        )
        axes.set_xlabel("tokens of a sample")
        axes.set_ylabel("samples")
        axes.spines[["top", "right"]].set_visible(False)
        with atomic_write(folder / "tokens.png") as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def validate_source(
    source: DataSource,
    tokenizer: Tokenizer,
    num_tokens: int,
    threads: int,
    progress: Callable[[int], None],
) -> DatasetReport:
    """Reads, decodes and tokenises every sample of a dataset.

    Args:
      source: the dataset.
      tokenizer: for its text.
      num_tokens: of a sample in training.
      threads: that read.
      progress: called with the number of samples done since the last call.
    """
    report, images = DatasetReport(num_tokens, notes=source.notes), set()

    def check(index: int):
        try:
            return _check_sample(source, index, tokenizer, num_tokens)
        except InvalidSample as invalid:
            return invalid

    for index, result in enumerate(ordered_map(check, range(len(source)), threads)):
        report.samples += 1
        progress(1)
        if isinstance(result, InvalidSample):
            line = {"index": index, "reason": result.reason, "where": result.where}
            report.invalid.append(line | {"detail": result.detail})
            continue
        mode, digest, tokens, is_long = result
        report.tokens.append(tokens)
        report.long += is_long
        report.cut += is_long or tokens > num_tokens
        if digest is None:
            report.text_alone += 1
            continue
        report.modes[mode] += 1
        report.repeated += digest in images
        images.add(digest)
    return report


def _check_sample(
    source: DataSource, index: int, tokenizer: Tokenizer, num_tokens: int
) -> tuple[str | None, bytes | None, int, bool]:
    """(image mode, hash of the image, tokens, whether the text is a long one) of a
    sample. Raises InvalidSample."""
    whole = source[index]
    sample = truncate_text(whole, num_tokens)
    tokens = count_tokens(sample, tokenizer)
    where = source.describe(index)
    if not encode_sample(sample, tokenizer, tokens + 1)["target"].any():
        raise InvalidSample("no target", where, "has no supervised token")
    is_long = sample is not whole
    if sample.image is None:
        return None, None, tokens, is_long
    digest = hashlib.sha256(sample.image).digest()
    if isinstance(sample.image, np.ndarray):
        return "RGB", digest, tokens, is_long
    decode(sample.image, _IMAGE_SIZE, "hf_bilinear", where)
    return image_mode(sample.image), digest, tokens, is_long
