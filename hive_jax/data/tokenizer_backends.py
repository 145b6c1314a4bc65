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
        encoded = self._with_special.encode(text, add_special_tokens=False)
        if not literal:
            return encoded.ids, encoded.offsets
        ids, spans = [], []
        for id, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            is_name = self._tokenizer.id_to_token(id) in self.added
            if is_name and any(a < end and start < b for a, b in literal):
                within = self._encode_name(text[start:end], id)
            else:
                within = [(id, 0, end - start)]
            ids += [id for id, _, _ in within]
            spans += [(start + first, start + last) for _, first, last in within]
        return ids, spans

    def _encode_name(self, name: str, id: int) -> list[tuple[int, int, int]]:
        """(id, start, end) of the tokens of a special token's name."""
        # After a newline: some tokenizers put a space before a text.
        encoded = self._tokenizer.encode("\n" + name, add_special_tokens=False)
        tokens = zip(encoded.ids, encoded.offsets, strict=True)
        tokens = [(i, max(a - 1, 0), b - 1) for i, (a, b) in tokens if b > 1]
        if id in (i for i, _, _ in tokens):
            raise ChatTemplateError(
                f"a message has {name!r}, which this tokenizer cannot encode as text"
            )
        return tokens

    @functools.cached_property
    def _with_special(self):
        """The same tokenizer, which finds special tokens in a text."""
        tokenizer = copy.deepcopy(self._tokenizer)
        tokenizer.encode_special_tokens = False
        return tokenizer

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)


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
