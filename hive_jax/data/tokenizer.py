"""Tokenizers from local files."""

import functools
import hashlib
import shutil
from pathlib import Path

from hive_jax.console import log
from hive_jax.data.tokenizer_files import read_sentencepiece, read_tokenizer_json
from hive_jax.downloads import local_copy
from hive_jax.errors import ConfigError, DataError, HiveError, MissingInputError
from hive_jax.io import atomic_dir, remove_folder

BUILTIN = "builtin:tabletop"
_BUILTIN = {BUILTIN: Path(__file__).parent.parent / "assets/tokenizer.json"}
_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")
# Optional files beside these in a Hugging Face folder.
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


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
        # LLaMA's vocabularies have no padding; what is padded has no weight anyway.
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

    Returns the same object while the file does not change.

    Raises:
      MissingInputError: the file or folder does not exist.
      DataError: the file is not a tokenizer.
    """
    path = tokenizer_file(source)
    about = path.stat()
    return _load(path, about.st_mtime_ns, about.st_size)


# A start looks at the tokenizer and its copy several times, and one of 260,000 tokens
# takes seconds to load. A changed file is loaded again.
@functools.lru_cache(maxsize=8)
def _load(path: Path, modified_ns: int, size: int) -> Tokenizer:
    return Tokenizer(path)


def keep_tokenizer(source: str, folder: Path) -> None:
    """Copies a tokenizer into `folder`, unless the same one is there already.

    Args:
      source: as `load_tokenizer` takes it.
      folder: replaced if it holds another tokenizer, or none that can be read.

    Raises:
      OutputError: it cannot be written.
    """
    # By content: a resumed run with the same tokenizer elsewhere keeps its copy.
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
