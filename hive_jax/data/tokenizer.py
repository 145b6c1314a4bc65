"""Tokenizers from local files."""

import functools
import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from hive_jax.console import log
from hive_jax.data.chat_format import ChatFormat, Span
from hive_jax.data.chat_template import ChatTemplate, fix_date
from hive_jax.data.tokenizer_backends import JsonBackend, SentencePieceBackend
from hive_jax.data.tokenizer_settings import (
    CONFIG,
    SETTINGS,
    TOKENIZER_FILES,
    TokenizerSettings,
    read_settings,
    settings_files,
)
from hive_jax.downloads import local_copy
from hive_jax.errors import ConfigError, DataError, HiveError, MissingInputError
from hive_jax.io import atomic_dir, remove_folder

_log = logging.getLogger(__name__)

BUILTIN = "builtin:tabletop"
_BUILTIN = {BUILTIN: Path(__file__).parent.parent / "assets/tokenizer.json"}
# Tokens with a role in a vocabulary without settings.
_NAMES = {
    "pad_token": ("<pad>",),
    "bos_token": ("<bos>", "<s>"),
    "eos_token": ("<eos>", "</s>"),
    "unk_token": ("<unk>",),
}


class Tokenizer:
    """A tokenizer.json or SentencePiece file, with the settings beside it.

    Attributes:
      vocab_size: one more than the highest id that text can have.
      roles: role, such as "bos_token" -> its token, for the roles that it has.
      pad_id: of the padding, which no loss counts and no attention sees: that of the pad
        token, else of the end token, else 0.
      bos_id, eos_id: tokens that begin and end a text; None where there is none.
      end_ids: all tokens at which generation ends, eos_id among them.
      special_ids: tokens that are never part of a text.
      fingerprint: hash of the file and of the special tokens.
      chat_template: in Jinja, with a fixed date; empty for none.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        settings = read_settings(path)
        backend = SentencePieceBackend if path.suffix == ".model" else JsonBackend
        self._backend = backend(path, settings)
        ids = {role: self._id_of_role(role, settings) for role in _NAMES}
        self.bos_id, self.eos_id = ids["bos_token"], ids["eos_token"]
        self.pad_id = ids["pad_token"] if ids["pad_token"] is not None else self.eos_id
        declared = {self.pad_id, self.bos_id, self.eos_id} - {None}
        self.special_ids = frozenset(declared | self._backend.special_ids)
        self.end_ids = frozenset(
            {self.eos_id, *settings.ids.get("eos_token", ())} - {None}
        )
        if self.pad_id is None:
            self.pad_id = 0
        if ids["pad_token"] is None:
            token = self.token_of(self.pad_id)
            _log.warning(
                "%s has no pad token; padding with %r, id %d", path, token, self.pad_id
            )
            ids["pad_token"] = self.eos_id
        self.roles = {
            role: self.token_of(id) for role, id in ids.items() if id is not None
        }
        self.vocab_size = max(self._backend.vocab_size, *(id + 1 for id in declared), 1)
        digest = hashlib.sha256(path.read_bytes())
        digest.update(repr((self.pad_id, self.bos_id, self.eos_id)).encode())
        self.fingerprint = digest.hexdigest()[:16]
        self._settings = settings
        self.chat_template = fix_date(settings.chat_template)

    @functools.cached_property
    def chat_format(self) -> ChatFormat | None:
        """How conversations are written; None without a chat template.

        Raises:
          DataError: the template cannot be used with this tokenizer.
        """
        if not self.chat_template:
            return None
        folder = self._settings.folder
        if isinstance(self._backend, SentencePieceBackend):
            raise DataError(
                f"{folder} has a chat template, which needs a tokenizer.json beside it, as "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes it"
            )
        # Declared tokens first: transformers takes no other.
        tokens = {**self.roles, **self._settings.tokens}
        tokens = {role: token for role, token in tokens.items() if token}
        template = ChatTemplate(self.chat_template, tokens, str(folder))
        special = [self.token_of(id) for id in self.special_ids]
        return ChatFormat(template, special, self._backend.added)

    @property
    def chat_end_id(self) -> int:
        """Id of the token at the end of an answer; of `chat_format`, which must exist."""
        return self._backend.id_of(self.chat_format.end_token)

    def _id_of_role(self, role: str, settings: TokenizerSettings) -> int | None:
        token = settings.tokens.get(role)
        if token is not None:
            id = self._backend.id_of(token)
            if id is None and role in ("bos_token", "eos_token"):
                raise DataError(
                    f"{settings.folder}: {role} is {token!r}, which the vocabulary does "
                    f"not have; expected one of its tokens in {CONFIG}"
                )
            return id
        # An end of generation may also be a token of the text, such as a newline.
        ids = settings.ids.get(role, ())
        special = [id for id in ids if id in self._backend.special_ids]
        if special or role in settings.tokens:
            return special[0] if special else None
        ids = (self._backend.id_of(name) for name in _NAMES[role])
        return next((id for id in ids if id is not None), None)

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns token ids, and the character span (start, end) of each in `text`."""
        return self._backend.encode(text)

    def encode_rendered(
        self, text: str, literal: Sequence[Span]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode`, for text of a chat template: names of special tokens are tokens.

        Args:
          text: the text.
          literal: spans of characters in which such names are text.

        Raises:
          ChatTemplateError: a name cannot be text.
        """
        return self._backend.encode_rendered(text, literal)

    def decode(self, ids) -> str:
        """Returns the text of `ids`, without special tokens."""
        ids = [int(id) for id in ids]
        return self._backend.decode([id for id in ids if id not in self.special_ids])

    def token_of(self, id: int) -> str:
        """Returns the token of an id."""
        return self._backend.token_of(id)

    def ids_with(self, text: str) -> list[int]:
        """Ids of the tokens that contain `text`."""
        ids = range(self.vocab_size)
        return [id for id in ids if text in self._backend.decode([id])]


def load_tokenizer(source: str) -> Tokenizer:
    """Loads the tokenizer at "builtin:tabletop", a file, or a (Hugging Face) folder.

    Returns the same object while the file does not change.

    Raises:
      MissingInputError: the file or folder does not exist.
      DataError: the file is not a tokenizer.
    """
    path = tokenizer_file(source)
    files = (file.stat() for file in (path, *settings_files(path)))
    return _load(path, tuple((file.st_mtime_ns, file.st_size) for file in files))


# A start looks at the tokenizer and its copy several times, and one of 260,000 tokens
# takes seconds to load. A changed file is loaded again.
@functools.lru_cache(maxsize=8)
def _load(path: Path, modified: tuple[tuple[int, int], ...]) -> Tokenizer:
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
        expected, problem = load_tokenizer(source), "is another tokenizer"
        try:
            stored = load_tokenizer(str(folder))
            is_same = stored.fingerprint == expected.fingerprint
            if is_same and stored.chat_template == expected.chat_template:
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
    files = [file, *settings_files(file)]
    if (origin := local_copy(source)).is_dir():
        others = (origin / name for name in TOKENIZER_FILES)
        files += [path for path in others if path.is_file() and path != file]
    with atomic_dir(folder) as temporary:
        for path in files:
            is_known = path.name in (*TOKENIZER_FILES, *SETTINGS)
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
        files = [path / name for name in TOKENIZER_FILES if (path / name).is_file()]
        if not files:
            raise MissingInputError(
                f"{path} holds none of {', '.join(TOKENIZER_FILES)}"
            )
        path = files[0]
    if not path.is_file():
        raise MissingInputError(
            f"data.tokenizer={source}: no such file; expected {list(_BUILTIN)}, a "
            f"tokenizer.json, a SentencePiece .model, or a folder with either"
        )
    return path
