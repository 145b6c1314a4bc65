"""Token ids of texts, as the tokenizers of released text towers compute them.

Unlike `hive_jax.data.tokenizer.Tokenizer`, which serves training, these recognize the
names of special tokens in a text and return no character spans.
"""

import re
import string
from pathlib import Path

from hive_jax.data.tokenizer_files import read_sentencepiece, read_tokenizer_json

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACE = "▁"  # as SentencePiece writes it


class JsonEncoder:
    """A tokenizer.json, without the begin and end tokens of its post-processor.

    Args:
      file: the tokenizer.json.
      lower_case: lower-case texts.
      no_punctuation: apply `remove_punctuation` to texts.
      special_tokens: whether names of special tokens in a text stand for the tokens.
    """

    def __init__(
        self, file: Path, lower_case: bool, no_punctuation: bool, special_tokens: bool
    ):
        from tokenizers import normalizers

        self._tokenizer = read_tokenizer_json(file)
        self._tokenizer.encode_special_tokens = not special_tokens
        self._lower_case, self._no_punctuation = lower_case, no_punctuation
        if lower_case and not no_punctuation:
            # As Siglip2Tokenizer. str.lower would look at the neighbours of a sigma, and
            # at the names of special tokens.
            steps = [normalizers.Lowercase(), self._tokenizer.normalizer]
            self._tokenizer.normalizer = normalizers.Sequence(
                [step for step in steps if step is not None]
            )

    def id_of(self, token: str) -> int | None:
        """Returns the id of a token; None if the vocabulary does not have it."""
        return self._tokenizer.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text."""
        if self._no_punctuation:
            text = remove_punctuation(text, self._lower_case)
        return self._tokenizer.encode(text, add_special_tokens=False).ids


class SentencePieceEncoder:
    """A SentencePiece model.

    Args:
      file: the model.
      lower_case: lower-case texts.
    """

    def __init__(self, file: Path, lower_case: bool):
        self._model = read_sentencepiece(file)
        self._lower_case = lower_case

    def id_of(self, token: str) -> int | None:
        """Returns the id of a token; None if the vocabulary does not have it."""
        id = self._model.piece_to_id(token)
        return id if self._model.id_to_piece(id) == token else None

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text."""
        return self._model.encode(text.lower() if self._lower_case else text)


class SiglipEncoder(SentencePieceEncoder):
    """A SentencePiece model, used as by `SiglipTokenizer` of transformers.

    A text is split at the names of special tokens. Punctuation is removed between them,
    and only the first piece gets the space that SentencePiece puts before a text.

    Args:
      file: the model.
      lower_case: lower-case texts.
      special_tokens: names of the special tokens to recognize, in addition to that of
        unknown characters; empty for none at all.
    """

    def __init__(self, file: Path, lower_case: bool, special_tokens: tuple[str, ...]):
        super().__init__(file, lower_case)
        self._start = self._model.id_to_piece(self._model.unk_id())
        names = {*special_tokens, self._start} if special_tokens else ()
        names = sorted(names, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
        # SentencePiece puts a space before a text; behind this token there is none.
        self._start_length = len(self._model.encode(self._start))

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text."""
        pieces = self._split.split(_SPACE + text.replace(_SPACE, " "))
        ids = []
        for number, piece in enumerate(pieces):
            if number % 2:  # a special token
                ids.append(self.id_of(piece))
                continue
            piece = remove_punctuation(piece, self._lower_case)
            # The space is dropped where a special token follows immediately.
            if piece and not (piece == _SPACE and len(pieces) > 1):
                encoded = self._model.encode(self._start + piece)
                ids += encoded[self._start_length :]
        return ids


def remove_punctuation(text: str, lower_case: bool) -> str:
    """Returns a text without ASCII punctuation, its whitespace joined to single spaces.

    Args:
      text: any text.
      lower_case: lower-case it first.
    """
    text = text.lower() if lower_case else text
    return " ".join(text.translate(_NO_PUNCTUATION).split())
