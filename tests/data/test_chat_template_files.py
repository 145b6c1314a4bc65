"""Chat templates: where they are found, what is refused, and what they cannot do."""

import json

import pytest
from helpers.chat_templates import (
    CHATML,
    GEMMA,
    LLAMA3,
    add_template,
    write_gemma,
    write_llama3,
    write_qwen2,
)
from helpers.decoder_tokenizers import write_llama2

from hive_jax.data.chat_template import ChatTemplate, ChatTemplateError
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.loader import read_row
from hive_jax.data.sample_encoding import count_tokens, encode_sample
from hive_jax.data.tokenizer import copy_tokenizer, keep_tokenizer, load_tokenizer
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import DataError

transformers = pytest.importorskip("transformers")

OTHER = CHATML.replace("You are a helpful assistant.", "Another.")
MESSAGES = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
SAMPLE = Sample(
    None, (Segment("a?", False, role="user"), Segment("b", role="assistant"))
)


def text_of(folder):
    return load_tokenizer(str(folder)).chat_format.render(SAMPLE).text


def write_config(folder, **changes):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_template_is_found_where_transformers_finds_it(tmp_path):
    write_qwen2(tmp_path)

    def check(expected):
        reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
        theirs = reference.apply_chat_template(MESSAGES, tokenize=False)
        assert text_of(tmp_path) == theirs
        assert expected in theirs

    check("You are a helpful assistant.")
    named = [
        {"name": "tool_use", "template": "x"},
        {"name": "default", "template": OTHER},
    ]
    write_config(tmp_path, chat_template=named)
    check("Another.")
    # A processor's file, which tokenizers do not read.
    (tmp_path / "chat_template.json").write_text('{"chat_template": "x"}')
    check("Another.")
    # A file of its own comes first; line ends of Windows are newlines.
    jinja = OTHER.replace("Another.", "A third.").replace("\n", "\r\n")
    (tmp_path / "chat_template.jinja").write_bytes(jinja.encode())
    check("A third.")


def test_named_templates_without_a_default_are_an_error(tmp_path):
    write_qwen2(tmp_path)
    write_config(tmp_path, chat_template=[{"name": "rag", "template": "x"}])
    with pytest.raises(
        DataError, match="has the templates rag; expected one of the name"
    ):
        load_tokenizer(str(tmp_path))
    write_config(tmp_path, chat_template=7)
    with pytest.raises(DataError, match="chat_template"):
        load_tokenizer(str(tmp_path))


def test_the_template_travels_with_the_tokenizer(tmp_path):
    write_qwen2(tmp_path / "a")
    copy_tokenizer(str(tmp_path / "a"), tmp_path / "copy")
    assert text_of(tmp_path / "copy") == text_of(tmp_path / "a")
    # Another template makes another copy, and the same one none.
    add_template(tmp_path / "a", OTHER)
    keep_tokenizer(str(tmp_path / "a"), tmp_path / "copy")
    assert "Another." in text_of(tmp_path / "copy")
    before = (tmp_path / "copy").stat().st_mtime_ns
    keep_tokenizer(str(tmp_path / "a"), tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mtime_ns == before


def test_without_a_template_messages_are_lines(tmp_path):
    plain = load_tokenizer("builtin:tabletop")
    assert plain.chat_format is None
    lines = Sample(None, (Segment("a?\n", False), Segment("b\n")))
    rows = [encode_sample(one, plain, 16) for one in (SAMPLE, lines)]
    assert all((rows[0][key] == rows[1][key]).all() for key in rows[0])
    assert count_tokens(SAMPLE, plain) == count_tokens(lines, plain)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for", "the chat template is not valid"),
        ("{{ messages[0].content.no.such }}", "the chat template fails"),
        # No end token; one that is no token of this tokenizer.
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "after an answer"),
        (CHATML.replace("im_end", "end"), "expected a token of this tokenizer"),
        # The role stands before the answer, and not in the prompt.
        (CHATML.partition("{% if add_g")[0], "expected it with add_generation_prompt"),
        ("{{ messages | length }}" + CHATML, "expected the same beginning"),
    ],
)
def test_templates_that_cannot_tell_answers_are_refused(tmp_path, template, expected):
    write_qwen2(tmp_path, template)
    with pytest.raises(DataError, match=expected) as raised:
        load_tokenizer(str(tmp_path)).chat_format  # noqa: B018
    assert str(tmp_path) in str(raised.value)


def test_the_end_token_may_have_any_letters(tmp_path):
    write_llama3(tmp_path, LLAMA3.replace("<|eot_id|>", "<|eob|>"), ("<|eob|>",))
    assert load_tokenizer(str(tmp_path)).chat_format.end_token == "<|eob|>"


def test_a_sentencepiece_file_is_refused(tmp_path):
    pytest.importorskip("sentencepiece")
    write_llama2(tmp_path)
    add_template(tmp_path, CHATML)
    with pytest.raises(DataError, match=r"needs a tokenizer\.json"):
        load_tokenizer(str(tmp_path)).chat_format  # noqa: B018


class Conversations:
    """A dataset of one conversation."""

    def __init__(self, *turns):
        segments = (Segment(t, r == "assistant", role=r) for r, t in turns)
        self.sample = Sample(None, tuple(segments))

    def __getitem__(self, index):
        return self.sample

    def describe(self, index):
        return "chat.json, record 7"


@pytest.mark.parametrize(
    ("template", "turns", "expected"),
    [
        (GEMMA, "system user assistant", "System role not supported"),
        (GEMMA, "user user assistant", "roles must alternate"),
        (CHATML, "assistant user", "message 0: the chat template writes other text"),
        # Text before an answer that depends on what follows.
        (
            "{% if messages | length > 3 %}more{% endif %}" + CHATML,
            "user assistant user assistant",
            "message 1: the chat template writes other text",
        ),
        # A content that is not as it was written.
        (
            CHATML.replace("message['content']", "message['content'] | upper"),
            "user assistant",
            "message 1: the chat template does not write the answer",
        ),
    ],
)
def test_a_conversation_that_a_template_refuses_is_a_bad_sample(
    tmp_path, template, turns, expected
):
    pytest.importorskip("sentencepiece")
    write = write_gemma if template is GEMMA else write_qwen2
    write(tmp_path, template.replace("'b'", "'B'"))
    tokenizer = load_tokenizer(str(tmp_path))
    if "upper" in template:  # refused for all, so from the format
        with pytest.raises(DataError, match="after an answer"):
            tokenizer.chat_format  # noqa: B018
        return
    source = Conversations(*((role, "hi") for role in turns.split()))
    with pytest.raises(InvalidSample, match=expected) as raised:
        read_row(source, 0, tokenizer, 64, image_size=8, preprocessing="hf_bicubic")
    assert raised.value.reason == "chat template"
    assert "chat.json, record 7" in str(raised.value)


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ strftime_now.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ messages.append({}) }}",
    "{{ messages[0].update(role='x') }}",
    "{% set ns = namespace() %}{% set ns.__call__ = cycler %}{{ ns('a') }}",
    "{{ namespace(__call__=cycler)('a') }}",
    "{% include '/etc/hostname' %}",
    "{% import '/etc/hostname' as x %}",
)


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_cannot_leave_its_sandbox(source):
    """It reaches no attribute of Python, no file, and changes no message."""
    messages = [dict(one) for one in MESSAGES]
    template = ChatTemplate(source, {}, "template")
    try:
        text = template.render(messages)
    except ChatTemplateError:
        text = ""
    # Some are undefined, which is written as nothing.
    assert not text
    assert messages == MESSAGES
