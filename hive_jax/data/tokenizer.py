"""Tokenizers from local files, and samples as token arrays.

Labels come from the character span of each token in the whole text; no part of it is
tokenised on its own, so no template or merge can shift them.
"""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np

from hive_jax.console import log
from hive_jax.data.tokenizer_files import read_sentencepiece, read_tokenizer_json
from hive_jax.data.types import Sample
from hive_jax.downloads import local_copy
from hive_jax.errors import ConfigError, DataError, HiveError, MissingInputError
from hive_jax.io import atomic_dir, remove_folder

BUILTIN = "builtin:tabletop"
_BUILTIN = {BUILTIN: Path(__file__).parent.parent / "assets/tokenizer.json"}
_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")
# Optional files beside these in a Hugging Face folder.
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

# Text beyond these is not tokenised: far more characters than tokens have on average,
# and at least a few pages.
_CHARACTERS, _CHARACTERS_PER_TOKEN = 2**16, 256


class Tokenizer:
    """A tokenizer.json or SentencePiece file.

    Attributes:
      vocab_size: one more than the highest id that text can have.
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
        """Returns token ids, and the character span (start, end) of each in `text`."""
        return self._backend.encode(text)

    def decode(self, ids) -> str:
        """Returns the text of `ids`, without special tokens."""
        special = {self.pad_id, self.bos_id, self.eos_id}
        return self._backend.decode([int(id) for id in ids if int(id) not in special])

    def token_of(self, id: int) -> str:
        """Returns the token of an id."""
        return self._backend.token_of(id)

    def ids_with(self, text: str) -> list[int]:
        """Ids of the tokens that contain `text`."""
        ids = range(self.vocab_size)
        return [id for id in ids if text in self._backend.decode([id])]


class _TokenizerJson:
    def __init__(self, path: Path):
        self._tokenizer = read_tokenizer_json(path)
        # "<eos>" in a caption is text, not the end of it.
        self._tokenizer.encode_special_tokens = True
        # Text never has a special token after the vocabulary, and the embedding table
        # no row for it (Gemma 3's <image_soft_token>).
        added = self._tokenizer.get_added_tokens_decoder()
        plain = [id for id, token in added.items() if not token.special]
        size = self._tokenizer.get_vocab_size(with_added_tokens=False)
        self.vocab_size = max(size, *(id + 1 for id in plain), 0)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def token_of(self, id: int) -> str:
        return self._tokenizer.id_to_token(id)

    def encode(self, text: str):
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)


class _SentencePiece:
    def __init__(self, path: Path):
        self._model = read_sentencepiece(path)
        self.vocab_size = self._model.vocab_size()

    def id_of(self, token: str) -> int | None:
        id = self._model.piece_to_id(token)
        return id if self._model.id_to_piece(id) == token else None

    def token_of(self, id: int) -> str:
        return self._model.id_to_piece(id)

    def encode(self, text: str):
        encoded = self._model.encode(text, return_type="offset_mapping")
        return encoded["ids"], encoded["offsets"]

    def decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)


def load_tokenizer(source: str) -> Tokenizer:
    """Loads the tokenizer at "builtin:tabletop", a file, or a (Hugging Face) folder.

    Raises:
      MissingInputError: the file or folder does not exist.
      DataError: the file is not a tokenizer.
    """
    return Tokenizer(tokenizer_file(source))


def keep_tokenizer(source: str, folder: Path) -> None:
    """Copies a tokenizer into `folder`, unless the same one is there already.

    Args:
      source: as `load_tokenizer` takes it.
      folder: replaced if it holds another tokenizer, or none that can be read.

    Raises:
      OutputError: it cannot be written.
    """
    if folder.is_dir():
        expected, problem = load_tokenizer(source).fingerprint, "is another tokenizer"
        try:
            if load_tokenizer(str(folder)).fingerprint == expected:
                return
        except HiveError as error:
            problem = f"cannot be read ({error})"
        log(f"{folder} {problem}: written anew")
        remove_folder(folder)
    copy_tokenizer(source, folder)


def is_builtin(source: str) -> bool:
    """Returns whether a source is the built-in tokenizer, or a copy of it."""
    return load_tokenizer(source).fingerprint == load_tokenizer(BUILTIN).fingerprint


def require_fitting(tokenizer: Tokenizer, name: str, num_rows: int) -> None:
    """Checks that a tokenizer has no more tokens than an embedding table.

    Args:
      tokenizer: the tokenizer.
      name: of the tokenizer, for the message.
      num_rows: of the embedding table.

    Raises:
      ConfigError: it has more.
    """
    if tokenizer.vocab_size > num_rows:
        raise ConfigError(
            f"{name} has {tokenizer.vocab_size} tokens, the model a table of "
            f"{num_rows}: choose the tokenizer of these weights"
        )


def copy_tokenizer(source: str, folder: Path) -> None:
    """Copies a tokenizer's file, and the settings beside it, into a new folder.

    Args:
      source: as `load_tokenizer` takes it.
      folder: to create.

    Raises:
      OutputError: it exists, or cannot be written.
    """
    file = tokenizer_file(source)
    if (origin := local_copy(source)).is_dir():
        files = [origin / name for name in (*_FILES, *_SETTINGS)]
        files = [path for path in files if path.is_file()]
    else:
        files = [file]
    with atomic_dir(folder) as temporary:
        for path in files:
            is_known = path.name in (*_FILES, *_SETTINGS)
            # A file of another name gets the one that its format has in a folder.
            default = "tokenizer.model" if path.suffix == ".model" else "tokenizer.json"
            shutil.copyfile(path, temporary / (path.name if is_known else default))


def tokenizer_file(source: str) -> Path:
    """Returns the tokenizer file at a source, given as for `load_tokenizer`.

    Raises:
      MissingInputError: the file does not exist, or the folder has none.
    """
    path = local_copy(_BUILTIN.get(source, source))
    if path.is_dir():
        files = [path / name for name in _FILES if (path / name).is_file()]
        if not files:
            raise MissingInputError(f"{path} holds none of {', '.join(_FILES)}")
        path = files[0]
    if not path.is_file():
        raise MissingInputError(
            f"data.tokenizer={source}: no such file; expected {list(_BUILTIN)}, a "
            f"tokenizer.json, a SentencePiece .model, or a folder with either"
        )
    return path


def encode_sample(
    sample: Sample,
    tokenizer: Tokenizer,
    num_tokens: int,
    tag_names: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """Returns the text arrays of one sample, each [num_tokens]; see Batch.

    A begin-of-sequence token comes first where the vocabulary has one. An image before
    the first segment precedes everything, this token included, as in PaliGemma.

    Args:
      sample: the sample.
      tokenizer: for its text.
      num_tokens: T; longer text is truncated, shorter text padded.
      tag_names: of the dataset, for the array "tag"; empty to leave it out.
    """
    sample = truncate_text(sample, num_tokens)
    text = "".join(segment.text for segment in sample.segments)
    ids, spans = tokenizer.encode(text)
    target, image_mask = _label_characters(sample)
    tags = _tag_characters(sample, tag_names) if tag_names else None
    prefix = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    limit = num_tokens - len(prefix)
    ids, spans = ids[:limit], spans[:limit]

    row = {
        "tokens": np.full(num_tokens, tokenizer.pad_id, np.int32),
        "target": np.zeros(num_tokens, bool),
        "image_mask": np.zeros(num_tokens, bool),
    }
    if tags is not None:
        row["tag"] = np.zeros(num_tokens, np.int32)
    row["tokens"][: len(prefix) + len(ids)] = prefix + ids
    if sample.image is not None:
        row["image_mask"][: len(prefix)] = sample.image_before == 0
    for position, (start, end) in enumerate(spans, start=len(prefix)):
        # A token has the labels of its last character. One without a character of its
        # own (SentencePiece's bytes but the last of a character) has those of the next.
        last = min(max(end - 1, start), len(text) - 1)
        row["target"][position] = target[last] and position > 0
        row["image_mask"][position] = image_mask[last]
        if tags is not None:
            row["tag"][position] = tags[min(start, last) : last + 1].max()
    return row


def count_tokens(sample: Sample, tokenizer: Tokenizer) -> int:
    """Returns the length of a sample's text in tokens, before any truncation.

    Args:
      sample: its segments are joined before they are tokenised.
      tokenizer: adds the begin-of-sequence token, if it has one, to the count.
    """
    text = "".join(segment.text for segment in sample.segments)
    return len(tokenizer.encode(text)[0]) + (tokenizer.bos_id is not None)


def truncate_text(sample: Sample, num_tokens: int) -> Sample:
    """Drops text far beyond `num_tokens`, so that tokenising a text of any length takes
    bounded time.

    Args:
      sample: returned as it is, if there is no such text.
      num_tokens: of a sample in training.
    """
    limit = max_characters(num_tokens)
    if sum(len(segment.text) for segment in sample.segments) <= limit:
        return sample
    segments = []
    for segment in sample.segments:
        text = segment.text[:limit]
        segments.append(dataclasses.replace(segment, text=text))
        limit -= len(text)
    return dataclasses.replace(sample, segments=tuple(segments))


def max_characters(num_tokens: int) -> int:
    """Returns the length at which text of `num_tokens` tokens is cut before tokenizing."""
    return max(_CHARACTERS, num_tokens * _CHARACTERS_PER_TOKEN)


def _label_characters(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """For each character: whether it is a target, and whether it sees the image."""
    target, image_mask = [], []
    for number, segment in enumerate(sample.segments):
        size = len(segment.text)
        target.append(np.full(size, segment.target))
        sees = sample.image is not None and number >= sample.image_before
        image_mask.append(np.full(size, sees))
    return np.concatenate(target), np.concatenate(image_mask)


def _tag_characters(sample: Sample, tag_names: tuple[str, ...]) -> np.ndarray:
    """For each character the index of its tag; 0 for none."""
    tags = []
    for segment in sample.segments:
        tags.append(np.zeros(len(segment.text), np.int32))
        for start, end, name in segment.tags:
            tags[-1][start:end] = tag_names.index(name)
    return np.concatenate(tags)
