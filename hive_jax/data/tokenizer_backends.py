"""Tokenizers of both formats with one interface; see `Tokenizer`."""

import copy
import functools
from collections.abc import Sequence
from pathlib import Path

from hive_jax.data.chat_format import Span
from hive_jax.data.chat_template import ChatTemplateError
from hive_jax.data.tokenizer_files import (
    add_tokens,
    read_sentencepiece,
    read_tokenizer_json,
)
from hive_jax.data.tokenizer_settings import CONFIG, TokenizerSettings
from hive_jax.errors import DataError


class JsonBackend:
    """A tokenizer.json.

    Attributes:
      vocab_size: one more than the highest id that text can have.
      special_ids: of tokens that are never part of a text.
      added: contents of the tokens that are matched as a whole, special or not.

    Args:
      path: the file.
      settings: of the files beside it.
    """

    def __init__(self, path: Path, settings: TokenizerSettings):
        self._tokenizer = read_tokenizer_json(path)
        add_tokens(self._tokenizer, settings)
        # "<eos>" in a caption is text, not the end of it.
        self._tokenizer.encode_special_tokens = True
        # Text never has a special token after the vocabulary, and the embedding table
        # no row for it (Gemma 3's <image_soft_token>).
        added = self._tokenizer.get_added_tokens_decoder()
        self.added = frozenset(token.content for token in added.values())
        self.special_ids = {id for id, token in added.items() if token.special}
        plain = added.keys() - self.special_ids
        size = self._tokenizer.get_vocab_size(with_added_tokens=False)
        self.vocab_size = max(size, *(id + 1 for id in plain), 0)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def token_of(self, id: int) -> str:
        return self._tokenizer.id_to_token(id)

    def encode(self, text: str):
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def encode_rendered(self, text: str, literal: Sequence[Span]):
        pieces, position = [], 0
        for start, end in literal:
            pieces += [(position, start, self._with_special)]
            pieces += [(start, end, self._tokenizer)]
            position = end
        pieces.append((position, len(text), self._with_special))
        ids, spans = [], []
        for start, end, tokenizer in pieces:
            encode = _encode_within if start else _encode
            within = encode(tokenizer, text[start:end])
            name = tokenizer.token_to_id(text[start:end])
            if tokenizer is self._tokenizer and name in (id for id, _ in within):
                raise ChatTemplateError(
                    f"a message has {text[start:end]!r}, which this tokenizer cannot "
                    "encode as text"
                )
            ids += [id for id, _ in within]
            spans += [(start + first, start + last) for _, (first, last) in within]
        return ids, spans

    @functools.cached_property
    def _with_special(self):
        """The same tokenizer, which finds special tokens in a text."""
        tokenizer = copy.deepcopy(self._tokenizer)
        tokenizer.encode_special_tokens = False
        return tokenizer

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)


def _encode(tokenizer, text: str) -> list[tuple[int, Span]]:
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return [*zip(encoded.ids, encoded.offsets, strict=True)]


def _encode_within(tokenizer, text: str) -> list[tuple[int, Span]]:
    """As `_encode`, for text that others precede."""
    # After a newline, for some tokenizers put a space before a text.
    tokens = _encode(tokenizer, "\n" + text)
    if any(start < 1 < end for _, (start, end) in tokens):  # one token with the text
        return _encode(tokenizer, text)
    return [(id, (start - 1, end - 1)) for id, (start, end) in tokens if end > 1]


class SentencePieceBackend:
    """A SentencePiece model, which takes names of special tokens for text always.

    Attributes:
      vocab_size: as of `JsonBackend`.
      special_ids: as of `JsonBackend`.

    Args:
      path: the file.
      settings: of the files beside it.
    """

    def __init__(self, path: Path, settings: TokenizerSettings):
        self._model = read_sentencepiece(path)
        self.vocab_size = self._model.vocab_size()
        added = {t.id: t for t in settings.added if t.id >= self.vocab_size}
        if plain := [t.content for t in added.values() if not t.special]:
            raise DataError(
                f"{settings.folder / CONFIG} adds the tokens {plain[:5]} to "
                f"{path.name}, which cannot hold them; expected a tokenizer.json beside "
                "it, as AutoTokenizer.from_pretrained(folder).save_pretrained(folder) "
                "writes it"
            )
        self._added = {id: token.content for id, token in added.items()}
        ids = range(self.vocab_size)
        self.special_ids = {id for id in ids if self._model.is_control(id)} | {*added}

    def id_of(self, token: str) -> int | None:
        for id, content in self._added.items():
            if content == token:
                return id
        id = self._model.piece_to_id(token)
        return id if self._model.id_to_piece(id) == token else None

    def token_of(self, id: int) -> str:
        return self._added.get(id) or self._model.id_to_piece(id)

    def encode(self, text: str):
        encoded = self._model.encode(text, return_type="offset_mapping")
        return encoded["ids"], encoded["offsets"]

    def decode(self, ids: list[int]) -> str:
        return self._model.decode([id for id in ids if id < self.vocab_size])
