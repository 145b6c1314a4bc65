"""Tokenizers from local files, and samples as token arrays.

Labels come from the character span of each token in the whole text; nothing is
tokenised twice, so no template or merge can shift them.
"""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np

from hive_jax.data.types import KINDS, Sample
from hive_jax.errors import ConfigError, DataError, MissingInputError
from hive_jax.io import atomic_dir

BUILTIN = "builtin:tabletop"
_BUILTIN = {BUILTIN: Path(__file__).parent.parent / "assets/tokenizer.json"}
_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")
# What may stand beside them in a Hugging Face folder.
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

# Of a text, what is tokenised: many more characters than a token has, and a page of any.
_CHARACTERS, _CHARACTERS_PER_TOKEN = 2**16, 256


class Tokenizer:
    """A tokenizer.json or SentencePiece file.

    Attributes:
      vocab_size: one more than the highest id that can occur.
      pad_id, bos_id, eos_id: bos_id is None where the vocabulary has none.
      fingerprint: hash of the file.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        backend = _SentencePiece if path.suffix == ".model" else _TokenizerJson
        self._backend = backend(path)
        self.bos_id = self._first_of("<bos>", "<s>")
        self.eos_id = self._first_of("<eos>", "</s>")
        pad_id = self._first_of("<pad>")
        self.pad_id = self.eos_id if pad_id is None else pad_id
        if self.pad_id is None:
            raise DataError(f"{path} has none of the tokens <pad>, <eos>, </s>")
        ids = (self.pad_id, self.bos_id, self.eos_id)
        used = [id + 1 for id in ids if id is not None]
        self.vocab_size = max(self._backend.vocab_size, *used)
        self.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()[:16]

    def _first_of(self, *names: str) -> int | None:
        ids = (self._backend.id_of(name) for name in names)
        return next((id for id in ids if id is not None), None)

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and the character span (start, end) of each in `text`."""
        return self._backend.encode(text)

    def decode(self, ids) -> str:
        """The text of `ids`, without special tokens."""
        special = {self.pad_id, self.bos_id, self.eos_id}
        return self._backend.decode([int(id) for id in ids if int(id) not in special])

    def ids_with(self, text: str) -> list[int]:
        """Ids of the tokens that have `text` in them."""
        ids = range(self.vocab_size)
        return [id for id in ids if text in self._backend.decode([id])]


class _TokenizerJson:
    def __init__(self, path: Path):
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{path} is not a tokenizer.json: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # "<eos>" in a caption is text, not the end of it.
        self._tokenizer.encode_special_tokens = True
        # Ids that text can have: a special token after the vocabulary is none of them
        # (Gemma 3's <image_soft_token> is beyond its embedding table).
        added = self._tokenizer.get_added_tokens_decoder()
        plain = [id for id, token in added.items() if not token.special]
        size = self._tokenizer.get_vocab_size(with_added_tokens=False)
        self.vocab_size = max(size, *(id + 1 for id in plain), 0)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def encode(self, text: str):
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)


class _SentencePiece:
    def __init__(self, path: Path):
        try:
            import sentencepiece
        except ImportError:
            raise MissingInputError(
                f"{path} needs the package sentencepiece: pip install sentencepiece"
            ) from None
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except RuntimeError as error:
            raise DataError(f"{path} is not a SentencePiece model: {error}") from None
        self.vocab_size = self._model.vocab_size()

    def id_of(self, token: str) -> int | None:
        id = self._model.piece_to_id(token)
        return id if self._model.id_to_piece(id) == token else None

    def encode(self, text: str):
        encoded = self._model.encode(text, return_type="offset_mapping")
        return encoded["ids"], encoded["offsets"]

    def decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)


def load_tokenizer(source: str) -> Tokenizer:
    """The tokenizer at "builtin:tabletop", a file, or a (Hugging Face) folder."""
    return Tokenizer(tokenizer_file(source))


def keep_tokenizer(source: str, folder: Path) -> None:
    """Copies a tokenizer into `folder`, unless the same one is there already."""
    if folder.is_dir():
        if (
            load_tokenizer(source).fingerprint
            == load_tokenizer(str(folder)).fingerprint
        ):
            return
        shutil.rmtree(folder)
    copy_tokenizer(source, folder)


def is_builtin(source: str) -> bool:
    """Whether it is a copy of the tokenizer that comes along."""
    return load_tokenizer(source).fingerprint == load_tokenizer(BUILTIN).fingerprint


def require_fitting(tokenizer: Tokenizer, name: str, num_rows: int) -> None:
    """Raises ConfigError if a tokenizer has more tokens than an embedding table."""
    if tokenizer.vocab_size > num_rows:
        raise ConfigError(
            f"{name} has {tokenizer.vocab_size} tokens, the model a table of "
            f"{num_rows}: choose the tokenizer of these weights"
        )


def copy_tokenizer(source: str, folder: Path) -> None:
    """Copies a tokenizer's file, and the settings beside it, into a new folder.

    Raises:
      OutputError: it cannot be written.
    """
    file = tokenizer_file(source)
    if Path(source).is_dir():
        files = [Path(source) / name for name in (*_FILES, *_SETTINGS)]
        files = [path for path in files if path.is_file()]
    else:
        files = [file]
    with atomic_dir(folder) as temporary:
        for path in files:
            name = path.name if path.name in (*_FILES, *_SETTINGS) else _name_of(path)
            shutil.copyfile(path, temporary / name)


def _name_of(path: Path) -> str:
    """The name that a tokenizer file of any name has in a folder."""
    return "tokenizer.model" if path.suffix == ".model" else "tokenizer.json"


def tokenizer_file(source: str) -> Path:
    """The file of `load_tokenizer`'s argument. MissingInputError if there is none."""
    path = Path(_BUILTIN.get(source, source))
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).is_file()]
        if not found:
            raise MissingInputError(f"{path} holds none of {', '.join(_FILES)}")
        path = found[0]
    if not path.is_file():
        raise MissingInputError(
            f"data.tokenizer={source}: no such file; expected {list(_BUILTIN)}, a "
            f"tokenizer.json, a SentencePiece .model, or a folder with either"
        )
    return path


def encode_sample(
    sample: Sample, tokenizer: Tokenizer, num_tokens: int
) -> dict[str, np.ndarray]:
    """The text arrays of one sample, each [num_tokens]; see Batch.

    A begin-of-sequence token comes first where the vocabulary has one; text beyond
    `num_tokens` is cut, and that of `truncate_text` not even tokenised. An image before the
    first segment stands before everything, the begin-of-sequence token included, as in
    PaliGemma.
    """
    sample = truncate_text(sample, num_tokens)
    text = "".join(segment.text for segment in sample.segments)
    ids, spans = tokenizer.encode(text)
    target, seen, kind = _label_characters(sample)
    prefix = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    room = num_tokens - len(prefix)
    ids, spans = ids[:room], spans[:room]

    out = {
        "tokens": np.full(num_tokens, tokenizer.pad_id, np.int32),
        "target": np.zeros(num_tokens, bool),
        "image_mask": np.zeros(num_tokens, bool),
        "kind": np.zeros(num_tokens, np.int32),
    }
    length = len(prefix) + len(ids)
    out["tokens"][:length] = prefix + ids
    if sample.image is not None:
        out["image_mask"][: len(prefix)] = sample.image_before == 0
    for place, (start, end) in enumerate(spans, start=len(prefix)):
        # A token is where its last character is. One without a character of its own
        # (SentencePiece's bytes but the last of a character) is where it stands.
        last = min(max(end - 1, start), len(text) - 1)
        out["target"][place] = target[last] and place > 0
        out["image_mask"][place] = seen[last]
        out["kind"][place] = kind[min(start, last) : last + 1].max()
    return out


def count_tokens(sample: Sample, tokenizer: Tokenizer) -> int:
    """Tokens of a sample that is not cut."""
    text = "".join(segment.text for segment in sample.segments)
    return len(tokenizer.encode(text)[0]) + (tokenizer.bos_id is not None)


def truncate_text(sample: Sample, num_tokens: int) -> Sample:
    """The sample without text that is far beyond `num_tokens`, so that a text of any
    length costs no more than a long one; itself, if there is none."""
    room = max(_CHARACTERS, num_tokens * _CHARACTERS_PER_TOKEN)
    if sum(len(segment.text) for segment in sample.segments) <= room:
        return sample
    segments = []
    for segment in sample.segments:
        text = segment.text[:room]
        segments.append(dataclasses.replace(segment, text=text))
        room -= len(text)
    return dataclasses.replace(sample, segments=tuple(segments))


def _label_characters(sample: Sample):
    """For each character: is it a target, does it see the image, its kind."""
    target, seen, kind = [], [], []
    for number, segment in enumerate(sample.segments):
        size = len(segment.text)
        target.append(np.full(size, segment.target))
        sees = sample.image is not None and number >= sample.image_before
        seen.append(np.full(size, sees))
        kinds = np.zeros(size, np.int32)
        for start, end, name in segment.kinds:
            kinds[start:end] = KINDS.index(name)
        kind.append(kinds)
    return tuple(np.concatenate(parts) for parts in (target, seen, kind))
