"""Special and added tokens and chat template of a tokenizer, from the files beside it.

As in transformers, tokenizer_config.json comes first, then special_tokens_map.json;
generation_config.json has the ids at which the model's texts begin and end. A chat
template is in chat_template.jinja, else in tokenizer_config.json.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from hive_jax.errors import DataError
from hive_jax.io import read_bytes, read_json
from hive_jax.json_text import decode_text, require_types

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")
CONFIG, SPECIAL_MAP = "tokenizer_config.json", "special_tokens_map.json"
GENERATION = "generation_config.json"
# Optional files beside a tokenizer in a Hugging Face folder.
CHAT_TEMPLATE = "chat_template.jinja"
SETTINGS = (CONFIG, SPECIAL_MAP, GENERATION, CHAT_TEMPLATE)
ROLES = ("pad_token", "bos_token", "eos_token", "unk_token")


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that a tokenizer has beside those of its model.

    Attributes:
      id: its id.
      content: its text.
      special: whether it is never part of a text.
      options: how it is matched in a text; see `tokenizers.AddedToken`.
    """

    id: int
    content: str
    special: bool
    options: Mapping[str, bool] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """What the files beside a tokenizer declare.

    Attributes:
      tokens: role, such as "bos_token" -> token; None where it is declared to be absent.
      ids: role -> ids, of generation_config.json.
      added: added tokens, by increasing id.
      folder: of the files, for messages.
      chat_template: in Jinja; empty for none.
    """

    tokens: Mapping[str, str | None]
    ids: Mapping[str, tuple[int, ...]]
    added: tuple[AddedToken, ...]
    folder: Path
    chat_template: str = ""


def settings_files(tokenizer: Path) -> list[Path]:
    """Returns the settings that exist beside a tokenizer file.

    A file of another name than in a Hugging Face folder stands alone.
    """
    names = SETTINGS if tokenizer.name in TOKENIZER_FILES else ()
    paths = (tokenizer.with_name(name) for name in names)
    return [path for path in paths if path.is_file()]


def read_settings(tokenizer: Path) -> TokenizerSettings:
    """Reads the settings beside a tokenizer file; absent files declare nothing.

    Raises:
      DataError: a file is damaged, or a value has the wrong type.
    """
    folder, files = tokenizer.parent, settings_files(tokenizer)
    contents = {path.name: read_json(path) for path in files if path.suffix == ".json"}
    config, special = contents.get(CONFIG, {}), contents.get(SPECIAL_MAP, {})
    tokens = {}
    for role in ROLES:
        for file, content in ((SPECIAL_MAP, special), (CONFIG, config)):
            if role in content:
                token = _content(content[role], f"{folder / file}: {role}")
                tokens[role] = token or tokens.get(role)
    generation = contents.get(GENERATION, {})
    ids = {
        role: _ids(generation[f"{role}_id"], f"{folder / GENERATION}: {role}_id")
        for role in ROLES
        if generation.get(f"{role}_id") is not None
    }
    added = config.get("added_tokens_decoder") or {}
    require_types({"it": added}, {"it": dict}, str(folder / CONFIG))
    where = f"{folder / CONFIG}: added_tokens_decoder"
    tokens_added = (_added(id, token, where) for id, token in added.items())
    by_id = tuple(sorted(tokens_added, key=lambda token: token.id))
    if folder / CHAT_TEMPLATE in files:
        template = decode_text(read_bytes(folder / CHAT_TEMPLATE), CHAT_TEMPLATE)
    else:
        template = _chat_template(config.get("chat_template"), folder / CONFIG)
    return TokenizerSettings(tokens, ids, by_id, folder, template)


def _chat_template(value, file: Path) -> str:
    """Returns the template, or that of the name "default" in a list."""
    if isinstance(value, list):
        where = f"{file}: chat_template"
        for one in value:
            require_types({"it": one}, {"it": dict}, where)
            require_types(one, {"name": str, "template": str}, where)
        named = {one["name"]: one["template"] for one in value}
        if "default" not in named:
            names = ", ".join(named) or "none"
            raise DataError(
                f"{where} has the templates {names}; expected one of the name default"
            )
        return named["default"]
    if value is not None:
        require_types({"chat_template": value}, {"chat_template": str}, str(file))
    return value or ""


def _content(token, where: str) -> str | None:
    """Returns the text of a token, which is a string, an object with it, or null."""
    if token is None:
        return None
    if isinstance(token, Mapping):
        require_types(token, {"content": str}, where)
        return token["content"]
    require_types({"token": token}, {"token": str}, where)
    return token


def _ids(value, where: str) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if not all(type(id) is int and id >= 0 for id in ids):
        raise DataError(f"{where} is {value!r:.60}; expected a token id, or a list")
    return tuple(ids)


def _added(id: str, token, where: str) -> AddedToken:
    if not (id.isdecimal() and isinstance(token, dict)):
        raise DataError(f"{where} has {id!r:.40}: {token!r:.60}; expected id: token")
    require_types(token, {"content": str}, f"{where}: {id}")
    names = ("single_word", "lstrip", "rstrip", "normalized")
    options = {name: bool(token[name]) for name in names if name in token}
    return AddedToken(int(id), token["content"], bool(token.get("special")), options)
