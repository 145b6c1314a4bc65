"""The text preprocessing of released text towers, from the files beside the weights.

As in transformers, tokenizer_config.json decides: its tokenizer_class, its special tokens
and its padding. Without a tokenizer_class the vocabulary decides.
"""

from collections.abc import Mapping
from pathlib import Path

from hive_jax.data.text_preprocessing import TextPreprocessing
from hive_jax.data.tokenizer import tokenizer_file
from hive_jax.data.tokenizer_files import read_sentencepiece, read_tokenizer_json
from hive_jax.errors import CheckpointError
from hive_jax.io import read_json
from hive_jax.json_text import require_types

_SETTINGS = "tokenizer_config.json"
# Tokenizer classes of transformers -> family, also with "Fast" at the end. Folders of SigLIP 2 name
# either of two classes; its training lower-cased texts under both.
_FAMILIES = {
    "SiglipTokenizer": "siglip",
    "Siglip2Tokenizer": "siglip2",
    "GemmaTokenizer": "siglip2",
    # These apply a tokenizer.json as it is.
    "PreTrainedTokenizerFast": "json",
    "TokenizersBackend": "json",
}
# Files of each family's vocabulary, the first that exists is read.
_VOCABULARIES = {
    "siglip": ("spiece.model", "tokenizer.json", "tokenizer.model"),
    "siglip2": ("tokenizer.json", "tokenizer.model"),
    "json": ("tokenizer.json",),
}


def stored_preprocessing(source: str, num_tokens: int) -> TextPreprocessing:
    """Finds the preprocessing of a released text tower.

    Args:
      source: folder of the weights or of a tokenizer, or a tokenizer's file.
      num_tokens: length of the tower's input.

    Raises:
      CheckpointError: the files do not tell the preprocessing.
      MissingInputError: there is no tokenizer.
      DataError: the tokenizer is damaged.
    """
    folder, settings = Path(source), {}
    if (folder / _SETTINGS).is_file():
        settings = read_json(folder / _SETTINGS, error=CheckpointError)
    name = str(settings.get("tokenizer_class") or "")
    if name not in _FAMILIES:
        name = name.removesuffix("Fast")
    if name == "GemmaTokenizer" and not _is_siglip(folder):
        name, settings = "", {}  # of a decoder: only the vocabulary counts
    family = _FAMILIES.get(name) if name else _family_of(tokenizer_file(source))
    file = _vocabulary(folder, family)
    if file is None:
        raise CheckpointError(_undetermined(folder, name))
    if family == "siglip":
        return _siglip(file, settings, num_tokens)
    return _tokenizer_json(file, settings, num_tokens, is_siglip2=family == "siglip2")


def _is_siglip(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    config = read_json(folder / "config.json", error=CheckpointError)
    return config.get("model_type") == "siglip"


def _family_of(file: Path) -> str | None:
    """The family that has a vocabulary; None for another vocabulary."""
    if file.suffix == ".model":
        model = read_sentencepiece(file)
        pieces = [model.id_to_piece(id) for id in range(min(4, model.vocab_size()))]
    else:
        tokenizer = read_tokenizer_json(file)
        pieces = [tokenizer.id_to_token(id) for id in range(4)]
        byte_fallback = getattr(tokenizer.model, "byte_fallback", False)
        if "</s>" not in pieces and not byte_fallback:
            return None  # bytes instead of characters: not Gemma's
    if {"<pad>", "<eos>", "<bos>"} <= {*pieces}:
        return "siglip2"
    return "siglip" if "</s>" in pieces and "<s>" not in pieces else None


def _vocabulary(source: Path, family: str | None) -> Path | None:
    if family is None or source.is_file():
        return source if family else None
    paths = [source / name for name in _VOCABULARIES[family]]
    return next((path for path in paths if path.is_file()), None)


def _undetermined(folder: Path, name: str) -> str:
    known = ", ".join(_FAMILIES)
    found = f"tokenizer_class {name!r}" if name else "no tokenizer_class"
    return (
        f"{folder}: the files do not tell how this text tower's input is made. Looked for "
        f"a tokenizer_class in {_SETTINGS} (one of {known}) with its vocabulary "
        f"(spiece.model of SigLIP, tokenizer.json of the others), else for the vocabulary "
        f"of SigLIP (SentencePiece with </s>) or of SigLIP 2 (Gemma's); found {found}"
        f"{_files_in(folder)}. Save the tokenizer of the same model beside the weights, "
        f"or name it with `tokenizer`"
    )


def _files_in(folder: Path) -> str:
    names = {name for files in _VOCABULARIES.values() for name in files}
    present = [name for name in sorted(names) if (folder / name).is_file()]
    return f", and {', '.join(present)}" if present else ""


def _siglip(file: Path, settings: Mapping, num_tokens: int) -> TextPreprocessing:
    return TextPreprocessing(
        file,
        num_tokens,
        pad_token=_token(settings, "pad_token", "</s>"),
        padding_side=settings.get("padding_side", "right"),
        end_token=_token(settings, "eos_token", "</s>"),
        lower_case=bool(settings.get("do_lower_case", True)),
        no_punctuation=True,
        special_tokens=not settings.get("split_special_tokens", False),
    )


def _tokenizer_json(
    file: Path, settings: Mapping, num_tokens: int, is_siglip2: bool
) -> TextPreprocessing:
    # Left is the default of Siglip2Tokenizer. SigLIP 2 was trained with padding on the
    # right, and its folders say so.
    side = "left" if is_siglip2 and settings else "right"
    begin, end = "", "<eos>"
    if settings and file.suffix == ".json":
        begin, end = _template(file, settings)
    return TextPreprocessing(
        file,
        num_tokens,
        pad_token=_token(settings, "pad_token", "<pad>"),
        padding_side=settings.get("padding_side", side),
        begin_token=begin,
        end_token=end,
        lower_case=is_siglip2,
        special_tokens=not settings.get("split_special_tokens", False),
    )


def _template(file: Path, settings: Mapping) -> tuple[str, str]:
    """Returns the tokens that transformers puts before and after a text, "" for none."""
    tokenizer = read_tokenizer_json(file)
    text = tokenizer.encode("a", add_special_tokens=False).tokens
    tokens = tokenizer.encode("a").tokens
    begin = "" if tokens[0] == text[0] else tokens[0]
    end = "" if tokens[-1] == text[-1] else tokens[-1]
    if len(tokens) != len(text) + bool(begin) + bool(end):
        raise CheckpointError(
            f"{file}: its post-processor makes {tokens} of the text 'a'; expected at most "
            "one token before the text and one after it"
        )
    for key, token in (("add_bos_token", begin), ("add_eos_token", end)):
        if settings.get(key, bool(token)) != bool(token):
            raise CheckpointError(
                f"{file.parent}: {key} is {settings[key]} in {_SETTINGS}, and the "
                f"post-processor of {file.name} makes {tokens} of the text 'a'; expected "
                "that both agree. Save the tokenizer again, with the special tokens that "
                "the tower was trained with"
            )
    return begin, end


def _token(settings: Mapping, role: str, default: str) -> str:
    token = settings.get(role) or default
    if isinstance(token, Mapping):
        types, where = {"content": str}, f"{_SETTINGS}: {role}"
        require_types(token, types, where, error=CheckpointError)
        token = token["content"]
    return token
