"""Tokenizers in the format of transformers.

The begin-of-sequence token comes where hive_jax has it: first, or where a chat template
writes it. A "vlm" has a chat template always, for its image tokens; a model trained on
conversations has that of the training.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from hive_jax.data.tokenizer import Tokenizer
from hive_jax.data.tokenizer_files import add_tokens, read_tokenizer_json
from hive_jax.data.tokenizer_settings import CHAT_TEMPLATE, read_settings
from hive_jax.errors import CheckpointError
from hive_jax.io import write_json

IMAGE_TOKEN = "<image>"
# As in training: the image first, then all messages, one a line. The content of a
# message is a list of items, or a string that may hold "<image>".
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
# Before a template of the training, for which all contents are strings.
_IMAGES_FIRST = """\
{%- set given = namespace(images=0, messages=[]) -%}
{%- for message in messages -%}
  {%- set content = message['content'] -%}
  {%- if content is string -%}
    {%- set count = content.count('<image>') -%}
    {%- set text = content.replace('<image>', '') -%}
  {%- else -%}
    {%- set count = content | selectattr('type', 'equalto', 'image') | list | length -%}
    {%- set texts = content | selectattr('type', 'equalto', 'text') -%}
    {%- set text = texts | map(attribute='text') | join -%}
  {%- endif -%}
  {%- set text = text | trim if count else text -%}
  {%- set given.images = given.images + count -%}
  {%- set given.messages = given.messages + [dict(message, content=text)] -%}
{%- endfor -%}
{{- '<image>' * given.images -}}
{%- set messages = given.messages %}
"""


@dataclasses.dataclass(frozen=True)
class ExportedTokenizer:
    """A tokenizer.json to write, and the token ids that the model config needs.

    Attributes:
      content: of tokenizer.json.
      special: role -> token, e.g. "bos_token" -> "<bos>".
      pad_id, bos_id, eos_id: bos_id and eos_id are None if the vocabulary has none.
      end_ids: all tokens at which generation ends.
      image_token_id: None for a model without image tokens.
      newline_id, newline: id and token of the newline that ends captions and answers;
        None if it is not a single token.
      chat_template: of a model trained on conversations, or with image tokens.
      answer_end: token that ends answers, where a chat template of the training writes
        it; empty where a newline ends them.
      settings: entries of tokenizer_config.json besides those of all components.
    """

    content: dict
    special: dict[str, str]
    pad_id: int
    bos_id: int | None
    eos_id: int | None
    end_ids: tuple[int, ...]
    image_token_id: int | None
    newline_id: int | None
    newline: str | None
    chat_template: str = ""
    answer_end: str = ""
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def for_text_tower(self, num_tokens: int) -> "ExportedTokenizer":
        """Returns the tokenizer with the text preprocessing of a text tower.

        Its ids, padded and truncated by transformers, are those of `own_preprocessing`;
        only the empty string lacks its newline, because normalizers do not see it.

        Args:
          num_tokens: length of the tower's input.
        """
        import tokenizers
        from tokenizers import Regex, normalizers

        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self.content))
        # Whitespace as str.strip has it.
        space = r"[\s\x1c-\x1f]+"
        steps = [
            normalizers.Replace(Regex(r"\z"), "\n"),
            normalizers.Replace(Regex(rf"{space}\z"), "\n"),
            normalizers.Replace(Regex(rf"\A{space}(?=.)"), ""),
            tokenizer.normalizer,
        ]
        steps = [step for step in steps if step is not None]
        tokenizer.normalizer = normalizers.Sequence(steps)
        settings = {
            "model_max_length": num_tokens,
            "padding_side": "right",
            # SigLIP attends to the padding too.
            "model_input_names": ["input_ids"],
            "processor_class": "SiglipProcessor",
        }
        content = json.loads(tokenizer.to_str())
        return dataclasses.replace(self, content=content, settings=settings)

    def ending_with_newline(self) -> "ExportedTokenizer":
        """Returns the tokenizer with the newline as its end token.

        For programs that end answers at that token only. Some tokenizers then encode
        two newlines in a row as two tokens instead of one.

        Raises:
          CheckpointError: a newline is not a single token, or does not end answers.
        """
        if self.answer_end:
            raise CheckpointError(
                f"newline_ends: the answers of this model end with {self.answer_end!r}, by "
                "the chat template of its training. Export without newline_ends"
            )
        if self.newline_id is None:
            raise CheckpointError(
                "newline_ends: this tokenizer encodes a newline as several tokens; "
                "expected one. Export without newline_ends"
            )
        special = self.special | {"eos_token": self.newline}
        return dataclasses.replace(self, special=special)

    def special_ids(self) -> dict[str, int | None]:
        """Returns the special token ids as entries of config.json."""
        return {
            "pad_token_id": self.pad_id,
            "bos_token_id": self.bos_id,
            "eos_token_id": self.eos_id,
        }

    def generation_config(self) -> dict:
        """Content of generation_config.json: end tokens and suppressed tokens."""
        ends = list(self.end_ids)
        newline_ends = self.newline_id is not None and not self.answer_end
        if newline_ends and self.newline_id not in ends:
            ends.append(self.newline_id)
        config = {"pad_token_id": self.pad_id, "eos_token_id": ends}
        if self.bos_id is not None:
            config["bos_token_id"] = self.bos_id
        if self.image_token_id is not None:
            config["suppress_tokens"] = [self.image_token_id]
        return config

    def write(self, folder: Path) -> None:
        """Writes tokenizer.json, its settings, and the chat template if it has one."""
        write_json(folder / "tokenizer.json", self.content)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000,
            "padding_side": "left",
            # transformers 4 would return token_type_ids too, which no decoder takes.
            "model_input_names": ["input_ids", "attention_mask"],
            # "<eos>" in a text is text, as in training. A chat template writes special
            # tokens by name.
            "split_special_tokens": not self.chat_template,
            **self.special,
            **self.settings,
        }
        if self.chat_template:
            settings["chat_template"] = self.chat_template
            template = folder / CHAT_TEMPLATE
            template.write_text(self.chat_template, encoding="utf-8")
        write_json(folder / "tokenizer_config.json", settings)
        write_json(folder / "special_tokens_map.json", self.special)


def export_tokenizer(
    path: Path, image_token: bool = False, chat: bool = False
) -> ExportedTokenizer:
    """Converts a tokenizer.json for transformers.

    Args:
      path: the file.
      image_token: add IMAGE_TOKEN, and leave the begin-of-sequence token to the chat
        template.
      chat: the model was trained on conversations by the tokenizer's chat template,
        which is exported.

    Raises:
      CheckpointError: it is a SentencePiece file.
    """
    import tokenizers

    if path.suffix == ".model":
        raise CheckpointError(
            f"{path} is a SentencePiece file; transformers needs a tokenizer.json. "
            "Import the weights again with `tokenizer` set to the tokenizer.json of the "
            "same model, and train from them; or export the encoder only"
        )
    ours = Tokenizer(path)
    tokenizer = read_tokenizer_json(path)
    add_tokens(tokenizer, read_settings(path))
    if image_token and tokenizer.token_to_id(IMAGE_TOKEN) is None:
        tokenizer.add_special_tokens([IMAGE_TOKEN])
    content = json.loads(tokenizer.to_str())
    content["post_processor"] = None
    if ours.bos_id is not None and not image_token and not chat:
        bos = tokenizer.id_to_token(ours.bos_id)
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, ours.bos_id)]
        )
        content = json.loads(tokenizer.to_str())
    ids, _ = ours.encode("\n")
    newline_id = ids[0] if len(ids) == 1 else None
    template = _CHAT_TEMPLATE if image_token else ""
    end_ids = ours.end_ids
    if chat:
        template = _IMAGES_FIRST * image_token + ours.chat_template
        end_ids |= {ours.chat_end_id}
    return ExportedTokenizer(
        content=content,
        special=ours.roles,
        pad_id=ours.pad_id,
        bos_id=ours.bos_id,
        eos_id=ours.eos_id,
        # The end of a text first.
        end_ids=tuple(sorted(end_ids, key=lambda id: (id != ours.eos_id, id))),
        image_token_id=tokenizer.token_to_id(IMAGE_TOKEN) if image_token else None,
        newline_id=newline_id,
        newline=None if newline_id is None else tokenizer.id_to_token(newline_id),
        chat_template=template,
        answer_end=ours.chat_format.end_token if chat else "",
    )
