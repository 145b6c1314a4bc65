"""Chat templates in the formats of well-known models, and tokenizers that have them."""

import json
from pathlib import Path

from helpers import decoder_tokenizers

# Qwen 2: a system message where there is none.
CHATML = """\
{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}"""
# Llama 3: contents are trimmed.
LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
{{- message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}"""
# Gemma: no system message, turns that alternate, another name of the assistant.
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
# Vicuna: names of the roles are text, and a space comes before an answer.
VICUNA = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system, turns = messages[0]['content'], messages[1:] -%}
{%- else -%}
{%- set system = 'A chat between a curious user and an assistant.' -%}
{%- set turns = messages -%}
{%- endif -%}
{{- bos_token + system -}}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{{- ' USER: ' + message['content'] -}}
{%- else -%}
{{- ' ASSISTANT: ' + message['content'] + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}"""
# Zephyr: roles are text, all messages have an end.
ZEPHYR = """\
{% for message in messages %}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
# Qwen 3: thoughts of all answers but the last are dropped, the last has an empty one.
THINKING = """\
{%- set ns = namespace(last=-1) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- set content = message.content -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- set thought = '' -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if loop.index0 > ns.last -%}
{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
{{- content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
# Llama 3.2: today's date.
DATED = """\
{%- if strftime_now is defined -%}
{%- set date = strftime_now("%d %b %Y") -%}
{%- else -%}{%- set date = 'never' -%}{%- endif -%}
{{- bos_token + 'Today Date: ' + date + '\\n\\n' -}}""" + LLAMA3.replace(
    "{{- bos_token -}}\n", ""
)


def _mark(template: str, written: str, header: str, answer: str, tail: str) -> str:
    """A template with {% generation %} around each answer and its end token."""
    assert template.count(written) == 1
    return template.replace(
        written,
        f"{{{{- {header} -}}}}{{%- if message['role'] == 'assistant' -%}}"
        f"{{%- generation -%}}{{{{- {answer} -}}}}{{%- endgeneration -%}}"
        f"{{%- else -%}}{{{{- {answer} -}}}}{{%- endif -%}}{{{{- {tail} }}}}",
    )


# The same templates for transformers' own mask of answers.
MARKED = {
    "chatml": _mark(
        CHATML,
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}",
        "'<|im_start|>' + message['role'] + '\\n'",
        "message['content'] + '<|im_end|>'",
        "'\\n'",
    ),
    "llama3": _mark(
        LLAMA3,
        "{{- message['content'] | trim + '<|eot_id|>' -}}",
        "''",
        "message['content'] | trim + '<|eot_id|>'",
        "''",
    ),
    "gemma": _mark(
        GEMMA,
        "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}",
        "'<start_of_turn>' + role + '\\n'",
        "message['content'] | trim + '<end_of_turn>'",
        "'\\n'",
    ),
    "vicuna": _mark(
        VICUNA,
        "{{- ' ASSISTANT: ' + message['content'] + eos_token -}}",
        "' ASSISTANT:'",
        "' ' + message['content'] + eos_token",
        "''",
    ),
    "zephyr": _mark(
        ZEPHYR,
        "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}",
        "'<|' + message['role'] + '|>\\n'",
        "message['content'] + eos_token",
        "''",
    ),
}
_LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
_LLAMA3 += ("<|start_header_id|>", "<|end_header_id|>")
_GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")


def write_qwen2(folder: Path, template: str = CHATML) -> None:
    """Writes Qwen 2's tokenizer with a template: byte-level BPE."""
    decoder_tokenizers.write_qwen2(folder)
    add_template(folder, template)


def write_llama3(
    folder: Path, template: str = LLAMA3, added: tuple[str, ...] = ()
) -> None:
    """Writes Llama 3's tokenizer, with the tokens around the roles and those added."""
    decoder_tokenizers.write_llama3(folder, (*_LLAMA3, *added))
    add_template(folder, template)


def write_gemma(folder: Path, template: str = GEMMA) -> None:
    """Writes a tokenizer.json from SentencePiece, with Gemma's tokens of turns."""
    _write_sentencepiece(folder, _GEMMA)
    add_template(folder, template)


def write_vicuna(folder: Path, template: str = VICUNA) -> None:
    """Writes a tokenizer.json from SentencePiece: Llama 2's, as Vicuna and Zephyr."""
    _write_sentencepiece(folder, ())
    add_template(folder, template)


def write_zephyr(folder: Path) -> None:
    """Writes Vicuna's tokenizer with Zephyr's template."""
    write_vicuna(folder, ZEPHYR)


# Name -> (writes the tokenizer into a folder, token at the end of an answer).
FORMATS = {
    "chatml": (write_qwen2, "<|im_end|>"),
    "llama3": (write_llama3, "<|eot_id|>"),
    "gemma": (write_gemma, "<end_of_turn>"),
    "vicuna": (write_vicuna, "</s>"),
    "zephyr": (write_zephyr, "</s>"),
}


def add_template(folder: Path, template: str) -> None:
    """Adds a template to the settings of a tokenizer, where most models have it."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(config | {"chat_template": template}))


def _write_sentencepiece(folder: Path, special: tuple[str, ...]) -> None:
    """Llama 2's tokenizer as a tokenizer.json, with further special tokens."""
    import tokenizers

    decoder_tokenizers.write_llama2(folder)
    decoder_tokenizers.to_tokenizer_json(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([*special])
    tokenizer.save(str(folder / "tokenizer.json"))
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text("utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if special:
        config |= {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    file.write_text(json.dumps(config))
