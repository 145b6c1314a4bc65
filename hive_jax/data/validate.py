"""Looks at every sample of a set before anybody trains on it; changes nothing."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hive_jax.data.image_io import image_mode
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.parallel import ordered_map
from hive_jax.data.tokenizer import (
    Tokenizer,
    count_tokens,
    encode_sample,
    truncate_text,
)
from hive_jax.data.transforms import decode

_SIZE = 32  # that images are decoded to


@dataclasses.dataclass
class ValidationReport:
    """What a set is made of.

    Attributes:
      samples: all of them.
      bad: {index, reason, where, detail} of each that cannot be used.
      text_alone: samples without an image.
      modes: image mode -> samples; all but RGB are converted when they are read.
      repeated: samples whose image is, bit for bit, that of an earlier one.
      tokens: of each good sample, before any cut; begin-of-sequence counts.
      long: samples of so much text that its end is not even tokenised, in training and
        here; see hive_jax/data/tokenizer.py.
      cut: samples of more than `num_tokens` tokens, and those.
      num_tokens: of a sample in training.
    """

    num_tokens: int
    samples: int = 0
    bad: list[dict] = dataclasses.field(default_factory=list)
    text_alone: int = 0
    modes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    repeated: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    long: int = 0
    cut: int = 0

    def report(self) -> dict:
        """All of it as JSON, without the list of the bad ones."""
        counts = np.asarray(self.tokens or [0])
        percentiles = (0, 5, 50, 95, 100)
        return {
            "samples": self.samples,
            "bad": len(self.bad),
            "bad_by_reason": dict(
                collections.Counter(one["reason"] for one in self.bad).most_common()
            ),
            "text_alone": self.text_alone,
            "image_modes": dict(self.modes.most_common()),
            "repeated_images": self.repeated,
            "num_tokens": self.num_tokens,
            "cut": self.cut,
            "long_texts": self.long,
            "tokens": {
                f"{p}%": int(value)
                for p, value in zip(
                    percentiles, np.percentile(counts, percentiles), strict=True
                )
            },
        }

    def text(self) -> str:
        """The report for people."""
        report = self.report()
        reasons = ", ".join(f"{n} {r}" for r, n in report["bad_by_reason"].items())
        modes = ", ".join(f"{n} {m}" for m, n in report["image_modes"].items())
        low, middle, high = (report["tokens"][p] for p in ("0%", "50%", "100%"))
        return "\n".join(
            [
                f"samples          {self.samples:,}",
                f"cannot be used   {len(self.bad):,}"
                + (f" ({reasons})" * bool(reasons)),
                f"text alone       {self.text_alone:,}",
                f"image modes      {modes or 'none'}",
                f"repeated images  {self.repeated:,}",
                f"tokens           {low} to {high}, median {middle}",
                f"cut              {self.cut:,}, of more than {self.num_tokens} tokens",
                f"long texts       {self.long:,}, of which only the start was tokenised",
            ]
        )

    def write(self, folder: Path) -> None:
        """report.json, bad_samples.jsonl and tokens.png."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        text = json.dumps(self.report(), indent=1)
        (folder / "report.json").write_text(text + "\n", "utf-8")
        lines = "".join(json.dumps(one) + "\n" for one in self.bad)
        (folder / "bad_samples.jsonl").write_text(lines, "utf-8")
        figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
        longest = max(self.tokens, default=1)
        axes.hist(self.tokens, bins=np.arange(min(longest, 4000) + 2) - 0.5)
        axes.axvline(self.num_tokens + 0.5, color="black", linestyle="--")
        axes.set_title(
            f"{self.cut} of {self.samples} are cut at {self.num_tokens} tokens"
        )
        axes.set_xlabel("tokens of a sample")
        axes.set_ylabel("samples")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / "tokens.png", dpi=120)
        plt.close(figure)


def validate_source(
    source,
    tokenizer: Tokenizer,
    num_tokens: int,
    threads: int,
    progress: Callable[[int], None],
) -> ValidationReport:
    """Reads, decodes and tokenises every sample of a source.

    Args:
      progress: called with the number of samples that were done.
    """
    found, images = ValidationReport(num_tokens), set()

    def look(index: int):
        try:
            return _look(source, index, tokenizer, num_tokens)
        except InvalidSample as bad:
            return bad

    for index, seen in enumerate(ordered_map(look, range(len(source)), threads)):
        found.samples += 1
        progress(1)
        if isinstance(seen, InvalidSample):
            one = {"index": index, "reason": seen.reason, "where": seen.where}
            found.bad.append(one | {"detail": seen.detail})
            continue
        mode, digest, tokens, is_long = seen
        found.tokens.append(tokens)
        found.long += is_long
        found.cut += is_long or tokens > num_tokens
        if digest is None:
            found.text_alone += 1
            continue
        found.modes[mode] += 1
        found.repeated += digest in images
        images.add(digest)
    return found


def _look(source, index: int, tokenizer: Tokenizer, num_tokens: int):
    """(image mode, hash of the image, tokens, whether its text is a long one) of a
    sample. Raises InvalidSample."""
    whole = source[index]
    sample = truncate_text(whole, num_tokens)
    tokens = count_tokens(sample, tokenizer)
    if not encode_sample(sample, tokenizer, tokens + 1)["target"].any():
        raise InvalidSample("no target", source.where(index), "has no supervised token")
    about = tokens, sample is not whole
    if sample.image is None:
        return None, None, *about
    if isinstance(sample.image, np.ndarray):
        return "RGB", hashlib.sha256(sample.image).digest(), *about
    decode(sample.image, _SIZE, "hf_bilinear", source.where(index))
    digest = hashlib.sha256(sample.image).digest()
    return image_mode(sample.image), digest, *about
