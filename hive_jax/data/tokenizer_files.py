"""Tokenizers as the libraries that define their formats read them."""

from pathlib import Path

from hive_jax.data.tokenizer_settings import TokenizerSettings
from hive_jax.errors import DataError, MissingInputError
from hive_jax.file_content import explain_file


def read_tokenizer_json(path: Path):
    """Returns the `tokenizers.Tokenizer` of a file, without truncation and padding.

    Raises:
      DataError: the file is not a tokenizer.json.
    """
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        about = explain_file(path) or f"is not a tokenizer.json: {error}"
        raise DataError(f"{path} {about}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_sentencepiece(path: Path):
    """Returns the `sentencepiece.SentencePieceProcessor` of a file.

    Raises:
      MissingInputError: the package sentencepiece is not installed.
      DataError: the file is not a SentencePiece model.
    """
    try:
        import sentencepiece
    except ImportError:
        raise MissingInputError(
            f"{path} needs the package sentencepiece: pip install sentencepiece"
        ) from None
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        about = explain_file(path) or f"is not a SentencePiece model: {error}"
        raise DataError(f"{path} {about}") from None


def add_tokens(tokenizer, settings: TokenizerSettings) -> None:
    """Adds the tokens of tokenizer_config.json that a tokenizer.json lacks.

    Args:
      tokenizer: `tokenizers.Tokenizer`, changed in place.
      settings: of the same folder.

    Raises:
      DataError: a token cannot have its id, because others are missing before it.
    """
    import tokenizers

    for token in settings.added:
        if tokenizer.token_to_id(token.content) is None:
            options = {**token.options, "special": token.special}
            tokenizer.add_tokens([tokenizers.AddedToken(token.content, **options)])
        id = tokenizer.token_to_id(token.content)
        if id != token.id:
            raise DataError(
                f"{settings.folder}: added_tokens_decoder of tokenizer_config.json gives "
                f"{token.content!r} the id {token.id}, and tokenizer.json the id {id}; "
                "expected files of one tokenizer"
            )
