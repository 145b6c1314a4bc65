"""Tokenizer and image processor as they go out with a model.

The exported tokenizer puts the begin-of-sequence token where hive_jax puts it: first,
and after the image's tokens in a "vlm", whose chat template writes it.
"""

import dataclasses
import json
from pathlib import Path

from hive_jax.data.tokenizer import Tokenizer
from hive_jax.errors import CheckpointError
from hive_jax.io import write_json

IMAGE_TOKEN = "<image>"
_SPECIAL = {
    "bos_token": ("<bos>", "<s>"),
    "eos_token": ("<eos>", "</s>"),
    "pad_token": ("<pad>",),
    "unk_token": ("<unk>",),
}
# The image first, as in training; then all that was said, a line each. A message is a
# list of parts, or a string with "<image>" in it.
_CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0) -%}
{%- for message in messages -%}
  {%- if message['content'] is string -%}
    {%- set seen.images = seen.images + message['content'].count('<image>') -%}
  {%- else -%}
    {%- for part in message['content'] if part['type'] == 'image' -%}
      {%- set seen.images = seen.images + 1 -%}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{{- '<image>' * seen.images -}}
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['content'] is string -%}
    {%- set text = message['content'].replace('<image>', '') | trim -%}
    {{- text + '\\n' if text else '' -}}
  {%- else -%}
    {%- for part in message['content'] if part['type'] == 'text' -%}
      {{- part['text'] + '\\n' -}}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
"""


@dataclasses.dataclass(frozen=True)
class ExportedTokenizer:
    """A tokenizer.json to write, and the ids that a model's configuration names.

    Attributes:
      content: of tokenizer.json.
      special: name of the role -> token, e.g. "bos_token" -> "<bos>".
      image_token_id: None where the model has no image token.
      newline_id, newline: the newline that ends captions and answers, and how the
        vocabulary writes it; None if it is not one token.
    """

    content: dict
    special: dict[str, str]
    pad_id: int
    bos_id: int | None
    eos_id: int | None
    image_token_id: int | None
    newline_id: int | None
    newline: str | None

    def ending_with_newline(self) -> "ExportedTokenizer":
        """With the newline as its end token, for programs that end answers at that one
        alone. Of two newlines in a row some tokenizers then make two tokens.

        Raises CheckpointError: a newline is not one token.
        """
        if self.newline_id is None:
            raise CheckpointError(
                "--newline_ends: a newline is several tokens of this tokenizer"
            )
        special = self.special | {"eos_token": self.newline}
        return dataclasses.replace(self, special=special)

    def generation_config(self) -> dict:
        """generation_config.json: what ends a text, and what is never written."""
        ends = [id for id in (self.eos_id, self.newline_id) if id is not None]
        config = {"pad_token_id": self.pad_id, "eos_token_id": ends}
        if self.bos_id is not None:
            config["bos_token_id"] = self.bos_id
        if self.image_token_id is not None:
            config["suppress_tokens"] = [self.image_token_id]
        return config

    def write(self, folder: Path) -> None:
        """tokenizer.json and its settings; for a vlm the chat template too."""
        write_json(folder / "tokenizer.json", self.content)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000,
            "padding_side": "left",
            # transformers 4 would make token_type_ids too, which no decoder takes.
            "model_input_names": ["input_ids", "attention_mask"],
            **self.special,
        }
        if self.image_token_id is not None:
            settings["chat_template"] = _CHAT_TEMPLATE
            template = folder / "chat_template.jinja"
            template.write_text(_CHAT_TEMPLATE, encoding="utf-8")
        write_json(folder / "tokenizer_config.json", settings)
        write_json(folder / "special_tokens_map.json", self.special)


def export_tokenizer(path: Path, image: bool) -> ExportedTokenizer:
    """The tokenizer in a tokenizer.json, for a "vlm" (`image`) or any other part.

    Raises:
      CheckpointError: it is a SentencePiece file.
    """
    import tokenizers

    if path.suffix == ".model":
        raise CheckpointError(
            f"{path} is a SentencePiece file, and transformers needs a tokenizer.json. "
            "Import the weights anew with --tokenizer and the tokenizer.json of the "
            "same model, and train from there; or export the encoder alone"
        )
    ours = Tokenizer(path)
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if image and tokenizer.token_to_id(IMAGE_TOKEN) is None:
        tokenizer.add_special_tokens([IMAGE_TOKEN])
    content = json.loads(tokenizer.to_str())
    content["post_processor"] = None
    if ours.bos_id is not None and not image:
        bos = tokenizer.id_to_token(ours.bos_id)
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, ours.bos_id)]
        )
        content = json.loads(tokenizer.to_str())
    found, _ = ours.encode("\n")
    newline = found[0] if len(found) == 1 else None
    return ExportedTokenizer(
        content,
        _special_tokens(tokenizer),
        ours.pad_id,
        ours.bos_id,
        ours.eos_id,
        tokenizer.token_to_id(IMAGE_TOKEN) if image else None,
        newline,
        None if newline is None else tokenizer.id_to_token(newline),
    )


def _special_tokens(tokenizer) -> dict[str, str]:
    found = {}
    for role, names in _SPECIAL.items():
        known = [name for name in names if tokenizer.token_to_id(name) is not None]
        if known:
            found[role] = known[0]
    found.setdefault("pad_token", found.get("eos_token"))
    return found
