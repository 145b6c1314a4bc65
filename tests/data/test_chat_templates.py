"""Chat templates: text and ids as transformers', labels of the answers alone."""

import itertools
import random

import numpy as np
import pytest
from helpers.chat_templates import (
    DATED,
    FORMATS,
    MARKED,
    THINKING,
    write_llama3,
    write_qwen2,
)
from helpers.tower_tokenizers import odd_texts

from hive_jax.data.sample_encoding import count_tokens, encode_sample
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.data.types import Sample, Segment

transformers = pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

# Names of tokens, among them those that end the answers of each format.
SPECIAL = ("<|im_end|>", "<|im_start|>", "<|eot_id|>", "<end_of_turn>", "</s>", "<s>")
OTHERS = ("<unk>", "<pad>", "<eos>", "<bos>", "<|e", "<|begin")
PLAIN = (
    "",
    " ",
    "\n",
    " yes ",
    "\n\nno\n",
    "a\n\nb",
    "USER: x",
    "<|assistant|>",
    "1234",
)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """(name of a format) -> the folder of its tokenizer."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            FORMATS[name][0](made[name])
        return made[name]

    return make


def conversations(count, name, special=()):
    """Random conversations, of odd texts and those of PLAIN and `special`."""
    rng = random.Random(0)
    odd = [t for t in odd_texts(2000) if not any(s in t for s in (*SPECIAL, *OTHERS))]

    def text():
        kinds = rng.choices((odd, PLAIN, special or PLAIN), k=rng.choice((1, 1, 2, 3)))
        return "".join(rng.choice(kind) for kind in kinds)

    for _ in range(count):
        has_system = name != "gemma" and rng.random() < 0.5
        messages = [{"role": "system", "content": text()}] * has_system
        for _ in range(rng.randint(1, 3)):
            messages.append({"role": "user", "content": text()})
            messages.append({"role": "assistant", "content": text()})
        yield messages


def sample_of(messages, **fields):
    segments = tuple(
        Segment(one["content"], one["role"] == "assistant", role=one["role"])
        for one in messages
    )
    return Sample(fields.pop("image", None), segments, **fields)


def row_of(messages, tokenizer, **fields):
    """The row, without padding."""
    sample = sample_of(messages, **fields)
    return encode_sample(sample, tokenizer, count_tokens(sample, tokenizer))


@pytest.mark.parametrize("name", FORMATS)
def test_text_and_ids_are_those_of_transformers(folder_of, name):
    """Of 300 odd conversations, and of the prompts for their last answers."""
    reference = transformers.AutoTokenizer.from_pretrained(folder_of(name))
    tokenizer = load_tokenizer(str(folder_of(name)))
    for messages in conversations(300, name):
        for given, prompt in ((messages, False), (messages[:-1], True)):
            options = {"add_generation_prompt": prompt}
            text = reference.apply_chat_template(given, tokenize=False, **options)
            ids = reference.apply_chat_template(given, **options)["input_ids"]
            sample = sample_of(given, awaits_answer=prompt)
            assert tokenizer.chat_format.render(sample).text == text
            row = row_of(given, tokenizer, awaits_answer=prompt)
            assert row["tokens"].tolist() == ids, text


@pytest.mark.parametrize("name", FORMATS)
def test_names_of_special_tokens_in_messages_are_text(folder_of, name):
    """As `sanitize_control_tokens` of transformers has it; the template's are tokens."""
    reference = transformers.AutoTokenizer.from_pretrained(folder_of(name))
    tokenizer = load_tokenizer(str(folder_of(name)))
    for messages in conversations(200, name, SPECIAL):
        row = row_of(messages, tokenizer)
        text = reference.apply_chat_template(messages, tokenize=False)
        assert tokenizer.chat_format.render(sample_of(messages)).text == text
        expected = reference.apply_chat_template(messages, sanitize_control_tokens=True)
        assert row["tokens"].tolist() == expected["input_ids"], text
        # One for each answer, and none of a message.
        answers = sum(one["role"] == "assistant" for one in messages)
        labels = row["tokens"][row["target"]]
        assert (labels == tokenizer.chat_end_id).sum() == answers


@pytest.mark.parametrize("name", FORMATS)
def test_labels_are_those_of_a_template_that_marks_answers(folder_of, name):
    """As transformers' mask has them, by {% generation %} in the same template."""
    reference = transformers.AutoTokenizer.from_pretrained(folder_of(name))
    tokenizer = load_tokenizer(str(folder_of(name)))
    for messages in conversations(200, name):
        row = row_of(messages, tokenizer)
        out = reference.apply_chat_template(
            messages,
            chat_template=MARKED[name],
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        assert row["tokens"].tolist() == out["input_ids"]
        assert row["target"].tolist() == out["assistant_masks"]


@pytest.mark.parametrize("name", FORMATS)
def test_labels_decode_to_the_answers(folder_of, name):
    """Between end tokens they are the contents of the assistant, and nothing else."""
    tokenizer = load_tokenizer(str(folder_of(name)))
    for messages in conversations(100, name):
        row = row_of(messages, tokenizer)
        labels = row["tokens"][row["target"]]
        ends = np.flatnonzero(labels == tokenizer.chat_end_id)
        assert ends[-1] == len(labels) - 1
        texts = [
            tokenizer.decode(labels[start:end])
            for start, end in itertools.pairwise([0, *(ends + 1)])
        ]
        answers = [one["content"] for one in messages if one["role"] == "assistant"]
        # Decoding drops what normalization and unknown characters lose, in both.
        expected = [tokenizer.decode(tokenizer.encode(text)[0]) for text in answers]
        assert [text.strip() for text in texts] == [text.strip() for text in expected]


def test_thoughts_that_a_template_drops_are_no_labels(tmp_path):
    """Qwen 3: an earlier answer loses its thought, the last one gets an empty one."""
    write_qwen2(tmp_path, THINKING)
    tokenizer = load_tokenizer(str(tmp_path))
    messages = [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "no"},
    ]
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    row = row_of(messages, tokenizer)
    out = reference.apply_chat_template(messages)
    assert row["tokens"].tolist() == out["input_ids"]
    labels = row["tokens"][row["target"]].tolist()
    text = reference.decode(labels)
    assert text == "yes<|im_end|><think>\n\n</think>\n\nno<|im_end|>"


def test_the_date_is_the_same_whenever_a_run_starts(tmp_path):
    write_llama3(tmp_path, DATED)
    tokenizer = load_tokenizer(str(tmp_path))
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
    ]
    text = tokenizer.chat_format.render(sample_of(messages)).text
    assert text.startswith("<|begin_of_text|>Today Date: 26 Jul 2024\n\n")
    # With the date in it, transformers writes the same on any day.
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    reference.chat_template = tokenizer.chat_template
    assert reference.apply_chat_template(messages, tokenize=False) == text


@pytest.mark.parametrize("name", FORMATS)
def test_an_image_comes_with_its_turn(folder_of, name):
    """What precedes it, up to the end of the answer before, does not see it."""
    tokenizer = load_tokenizer(str(folder_of(name)))
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "what is it?"},
        {"role": "assistant", "content": "an owl"},
    ]
    image = np.zeros((2, 2, 3), np.uint8)
    first = row_of(messages, tokenizer, image=image)
    assert first["image_mask"].all()
    later = row_of(messages, tokenizer, image=image, image_before=2)
    first_end = int(np.flatnonzero(later["target"])[0])
    first_end += int(np.argmax(later["tokens"][first_end:] == tokenizer.chat_end_id))
    expected = np.arange(len(later["tokens"])) > first_end
    assert (later["image_mask"] == expected).all()
    assert not row_of(messages, tokenizer)["image_mask"].any()


def test_long_conversations_are_cut_before_they_are_rendered(folder_of):
    """Templates are rendered for each answer: 20,000 would take hours."""
    tokenizer = load_tokenizer(str(folder_of("chatml")))
    turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    row = encode_sample(sample_of(turn * 10000), tokenizer, 32)
    short = encode_sample(sample_of(turn * 16), tokenizer, 32)
    assert (row["tokens"] == short["tokens"]).all()
    assert (row["target"] == short["target"]).all()
