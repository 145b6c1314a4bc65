"""Statistics of a dataset and its invalid samples, as a report."""

import collections
import dataclasses
from pathlib import Path

import numpy as np

from hive_jax.data.invalid import format_counts
from hive_jax.data.tokenizer import Tokenizer
from hive_jax.data.transforms import drops_alpha
from hive_jax.io import atomic_write, write_json, write_text
from hive_jax.json_text import json_lines

_MAX_HISTOGRAM = 4000  # tokens
_MAX_LISTED = 10  # classes
_EQUAL_CAPTIONS = 3  # listed, the most frequent


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """What a run makes of a sample.

    Attributes:
      tokenizer_name: of `tokenizer`, as in data.tokenizer.
      tokenizer: for the text.
      num_tokens: longer text is cut.
      image_size: side of the image, in pixels.
      preprocessing: of image files, one of transforms.PREPROCESSING.
    """

    tokenizer_name: str
    tokenizer: Tokenizer
    num_tokens: int
    image_size: int
    preprocessing: str


@dataclasses.dataclass
class DatasetReport:
    """Statistics of a dataset and its invalid samples.

    Attributes:
      settings: of the run that the samples are checked for.
      samples: number of all samples.
      invalid: {index, reason, where, detail} of each that cannot be used.
      text_alone: samples without an image.
      modes: PIL's image mode -> samples; all but RGB are converted when read.
      transparent: samples whose image has transparent pixels.
      rotated: samples whose image is to be rotated or mirrored, by its EXIF.
      brightest: largest upper half of each image of 16 bits, 0 to 255.
      repeated: samples whose image is, bit for bit, that of an earlier one.
      tokens: of each valid sample, before any cut; the begin-of-sequence token counts.
      long: samples of so much text that its end is not even tokenised, in training and
        here; see sample_encoding.truncate_text.
      cut: samples of more than `num_tokens` tokens, and the long ones.
      classes: name -> valid samples, the most frequent first.
      captions: text to learn -> valid samples, where several have it.
      notes: lines on what the dataset left out.
    """

    settings: SampleSettings
    samples: int = 0
    invalid: list[dict] = dataclasses.field(default_factory=list)
    text_alone: int = 0
    modes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    transparent: int = 0
    rotated: int = 0
    brightest: list[int] = dataclasses.field(default_factory=list)
    repeated: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    long: int = 0
    cut: int = 0
    classes: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )
    captions: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )
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
            "transparent_images": self.transparent,
            "rotated_images": self.rotated,
            "images_of_16_bits": len(self.brightest),
            "brightest_of_16_bits": max(self.brightest, default=None),
            "repeated_images": self.repeated,
            "classes": dict(self.classes.most_common()),
            "equal_captions": dict(self.captions.most_common(_EQUAL_CAPTIONS)),
            "tokenizer": self.settings.tokenizer_name,
            "num_tokens": self.settings.num_tokens,
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
        report, settings = self.to_dict(), self.settings
        reasons = f" ({format_counts(report['bad_by_reason'])})" * bool(self.invalid)
        low, middle, high = (report["tokens"][p] for p in ("0%", "50%", "100%"))
        limit, tokenizer = settings.num_tokens, settings.tokenizer_name
        return "\n".join(
            [
                f"samples          {self.samples:,}",
                f"cannot be used   {len(self.invalid):,}{reasons}",
                *self._first_of_each_reason(),
                f"text alone       {self.text_alone:,}",
                f"image modes      {format_counts(report['image_modes'])}",
                *self._conversions(),
                f"repeated images  {self.repeated:,}",
                *self._class_lines(),
                *self._caption_lines(),
                f"tokens           {low} to {high}, median {middle}, by {tokenizer}",
                f"cut              {self.cut:,}, of more than {limit} tokens",
                f"long texts       {self.long:,}, of which only the start was tokenised",
                *self.notes,
            ]
        )

    def _conversions(self) -> list[str]:
        """A line for each kind of image that training sees otherwise than a viewer."""
        lines = []
        if self.transparent:
            fate = f"on white, with {self.settings.preprocessing}"
            if drops_alpha(self.settings.preprocessing):
                fate = f"alpha dropped, with {self.settings.preprocessing}"
            lines.append(f"transparent      {self.transparent:,}, {fate}")
        if self.rotated:
            lines.append(f"rotated by EXIF  {self.rotated:,}, which is not applied")
        if self.brightest:
            lines.append(
                f"16 bits a value  {len(self.brightest):,}, of which the upper 8 are "
                f"used: the brightest is {max(self.brightest)} of 255"
            )
        return lines

    def _first_of_each_reason(self) -> list[str]:
        first = {}
        for one in self.invalid:
            first.setdefault(one["reason"], f"{one['where']}: {one['detail']}")
        return [f"  {reason}, first: {text}" for reason, text in first.items()]

    def _class_lines(self) -> list[str]:
        if not self.classes:
            return []
        known = self.classes.most_common()
        listed = ", ".join(f"{name} {count}" for name, count in known[:_MAX_LISTED])
        more = ", ..." * (len(known) > _MAX_LISTED)
        rarest, count = known[-1]
        return [
            f"classes          {len(known):,}: {listed}{more}",
            f"rarest class     {rarest}, {count} samples",
        ]

    def _caption_lines(self) -> list[str]:
        if self.classes:  # captions are made of these
            return []
        return [
            f"equal captions   {count:,} of {self.samples:,}: {text}"
            for text, count in self.captions.most_common(_EQUAL_CAPTIONS)
        ]

    def write(self, folder: Path) -> None:
        """Writes report.json, bad_samples.jsonl and tokens.png. Raises OutputError."""
        from matplotlib.figure import Figure

        write_json(folder / "report.json", self.to_dict())
        write_text(folder / "bad_samples.jsonl", json_lines(self.invalid))
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        longest = max(self.tokens, default=1)
        axes.hist(self.tokens, bins=np.arange(min(longest, _MAX_HISTOGRAM) + 2) - 0.5)
        limit = self.settings.num_tokens
        axes.axvline(limit + 0.5, color="black", linestyle="--")
        axes.set_title(f"{self.cut} of {self.samples} are cut at {limit} tokens")
        axes.set_xlabel("tokens of a sample")
        axes.set_ylabel("samples")
        axes.spines[["top", "right"]].set_visible(False)
        with atomic_write(folder / "tokens.png") as temporary:
            figure.savefig(temporary, format="png", dpi=120)
