"""Texts as the input of a text tower: one description for all families of towers.

`own_preprocessing` is the one of towers that this project trains;
`stored_text_preprocessing` finds that of released weights.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hive_jax.data.sample_encoding import max_characters
from hive_jax.data.text_encoders import (
    JsonEncoder,
    SentencePieceEncoder,
    SiglipEncoder,
)
from hive_jax.data.tokenizer import load_tokenizer, tokenizer_file
from hive_jax.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class TextPreprocessing:
    """How texts become the input of a text tower.

    Attributes:
      file: tokenizer.json or SentencePiece model.
      num_tokens: length of the input; longer texts are truncated, shorter ones padded.
      pad_token: token of the padding.
      padding_side: "right" or "left".
      begin_token: first token; empty for none.
      end_token: last token, of truncated texts too; empty for none.
      lower_case: whether texts are lower-cased.
      no_punctuation: whether texts lose their ASCII punctuation and repeated whitespace,
        as in transformers' SiglipTokenizer.
      line: whether texts are stripped and end with a newline.
      special_tokens: whether names of special tokens in a text, such as "<eos>", stand
        for the tokens.
    """

    file: Path
    num_tokens: int
    pad_token: str
    padding_side: str = "right"
    begin_token: str = ""
    end_token: str = ""
    lower_case: bool = False
    no_punctuation: bool = False
    line: bool = False
    special_tokens: bool = True

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns token ids, int32[B, num_tokens].

        Raises:
          CheckpointError: the vocabulary lacks the begin, end or padding token.
          DataError, MissingInputError: the tokenizer cannot be read.
        """
        return np.stack([self._row(text) for text in texts])

    def as_json(self) -> dict:
        """Returns all settings as JSON values, the file as a hash of its content."""
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()[:16]
        return dataclasses.asdict(self) | {"file": digest}

    def _row(self, text: str) -> np.ndarray:
        if self.line:
            text = text.strip() + "\n"
        # Cut first, for tokenizing a text of any length would take any time.
        ids = self._encoder.encode(text[: max_characters(self.num_tokens)])
        begin, end, pad = self._affixes
        ids = begin + ids[: self.num_tokens - len(begin) - len(end)]
        # SiglipTokenizer does not repeat an end token that the text itself has.
        if not (self.no_punctuation and end and ids[-1:] == end):
            ids = ids + end
        padding = pad * (self.num_tokens - len(ids))
        ids = padding + ids if self.padding_side == "left" else ids + padding
        return np.array(ids, np.int32)

    # Read when first used: a model that embeds images alone needs no tokenizer.
    @functools.cached_property
    def _encoder(self) -> JsonEncoder | SentencePieceEncoder:
        if self.file.suffix == ".json":
            return JsonEncoder(
                self.file, self.lower_case, self.no_punctuation, self.special_tokens
            )
        if self.no_punctuation:
            tokens = (self.end_token, self.pad_token) if self.special_tokens else ()
            return SiglipEncoder(self.file, self.lower_case, tokens)
        return SentencePieceEncoder(self.file, self.lower_case)

    @functools.cached_property
    def _affixes(self) -> tuple[list[int], list[int], list[int]]:
        """Ids of the begin, end and padding token, each in a list, empty for none."""
        affixes = []
        for token in (self.begin_token, self.end_token, self.pad_token):
            id = self._encoder.id_of(token) if token else None
            if token and id is None:
                raise CheckpointError(
                    f"{self.file} has no token {token!r}, which the input of this text "
                    "tower needs; expected the tokenizer of the same weights"
                )
            affixes.append([id] if token else [])
        return tuple(affixes)


def own_preprocessing(source: str, num_tokens: int) -> TextPreprocessing:
    """Returns the preprocessing of towers that this project trains: lines of text, after
    the begin token if the vocabulary has one, as `encode_sample` makes them.

    Args:
      source: tokenizer, as `load_tokenizer` takes it.
      num_tokens: length of the tower's input.

    Raises:
      MissingInputError, DataError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(source)
    begin = tokenizer.bos_id
    return TextPreprocessing(
        tokenizer_file(source),
        num_tokens,
        pad_token=tokenizer.token_of(tokenizer.pad_id),
        begin_token="" if begin is None else tokenizer.token_of(begin),
        line=True,
        special_tokens=False,
    )
