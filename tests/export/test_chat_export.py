"""Runs on conversations: exports have the template, and answer as hive_jax does."""

import dataclasses
import json

import numpy as np
import pytest
from helpers.chat_templates import FORMATS
from helpers.exported_runs import report_of, run_config
from helpers.random_runs import save_random
from PIL import Image

from hive_jax import chat
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.errors import CheckpointError
from hive_jax.export.export import export
from hive_jax.inference.generate import Decoding, Prompt
from hive_jax.inference.model import load

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
pytest.importorskip("sentencepiece")

NEW_TOKENS = 12
QUESTION = "a photo of an owl?"
MESSAGES = [
    {"role": "user", "content": " Two children play, one sings! "},
    {"role": "assistant", "content": "an owl\n\non a branch"},
    {"role": "user", "content": QUESTION},
]
# Of the family that has such a tokenizer, which transformers 5 goes by.
DECODER = {"chatml": "qwen2", "llama3": "llama", "gemma": "gemma1"}
# Each component with one format, and a vlm of a tokenizer that writes a begin token: the
# verification knows formats by their template alone.
VERIFIED = {
    ("chatml", "vlm"),
    ("chatml", "hive"),
    ("chatml", "decoder"),
    ("gemma", "vlm"),
}
FUSION = {"vlm": "self_attention", "hive": "hive", "decoder": "hive"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(format, component) -> tokenizer, workdir, export, verified if in VERIFIED."""
    folder, done = tmp_path_factory.mktemp("chat"), {}

    def make(name, component):
        if (name, component) not in done:
            here = folder / f"{name}_{component}"
            FORMATS[name][0](here / "tokenizer")
            config = run_config(f"{FUSION[component]} of {DECODER.get(name, 'llama')}")
            data = dataclasses.replace(config.data, tokenizer=str(here / "tokenizer"))
            config = dataclasses.replace(config, data=data)
            save_random(config, str(here / "run"), chat=True)
            verify = (name, component) in VERIFIED
            export(str(here / "run"), component, str(here / "export"), verify=verify)
            done[name, component] = here / "tokenizer", here / "run", here / "export"
        return done[name, component]

    return make


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("component", FUSION)
@pytest.mark.parametrize("name", FORMATS)
def test_exports_write_conversations_as_the_tokenizer_does(made, name, component):
    """Text and ids of stock AutoTokenizer, with those of the training's tokenizer."""
    tokenizer, _, exported = made(name, component)
    before = transformers.AutoTokenizer.from_pretrained(tokenizer)
    after = transformers.AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    for messages in (MESSAGES[:1], MESSAGES[:2], MESSAGES):
        options = {"add_generation_prompt": messages[-1]["role"] == "user"}
        texts = [
            one.apply_chat_template(messages, tokenize=False, **options)
            for one in (before, after)
        ]
        assert texts[0] == texts[1]
        ids = [
            one.apply_chat_template(messages, **options)["input_ids"]
            for one in (before, after)
        ]
        assert ids[0] == ids[1]
        # In two steps, too: the template writes the begin token.
        assert after(texts[1])["input_ids"] == ids[1]
    if (name, component) in VERIFIED:
        equal = report_of(exported)["verification"]["equal"]
        assert ("chat template" if component == "vlm" else "conversation") in equal
    end = load_tokenizer(str(tokenizer)).chat_end_id
    ends = json.loads((exported / "generation_config.json").read_text())["eos_token_id"]
    assert end in ends
    assert not any("\n" in before.decode([id]) for id in ends)


@pytest.mark.parametrize("name", FORMATS)
def test_a_processor_puts_the_image_first(made, name, image):
    """Of parts and of a string with its mark; ids are hive_jax's behind the image."""
    tokenizer, _, exported = made(name, "vlm")
    processor = transformers.AutoProcessor.from_pretrained(exported)
    before = transformers.AutoTokenizer.from_pretrained(tokenizer)
    prompt = before.apply_chat_template(
        [MESSAGES[2]], tokenize=False, add_generation_prompt=True
    )
    for content in (
        [{"type": "image"}, {"type": "text", "text": QUESTION}],
        f"<image>\n{QUESTION}",
    ):
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        assert text == "<image>" + prompt
        ids = processor(images=Image.open(image), text=text)["input_ids"][0]
        patches = ids.count(processor.image_token_id)
        expected = before(prompt, add_special_tokens=False)["input_ids"]
        assert ids[patches:] == expected


@pytest.mark.parametrize("component", ["vlm", "hive"])
def test_answers_are_those_of_stock_transformers(made, component, image, capsys):
    """The run, its export, the command, and transformers give one text."""
    _, run, exported = made("chatml", component)
    auto = transformers.AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        exported, trust_remote_code=True
    ).eval()
    opened = Image.open(image)
    if component == "vlm":
        processor = transformers.AutoProcessor.from_pretrained(exported)
        parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=False,
        )
        inputs = processor(images=opened, text=text, return_tensors="pt")
    else:
        inputs = auto.apply_chat_template(
            [MESSAGES[2]],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        pixels = transformers.AutoImageProcessor.from_pretrained(exported)
        inputs = dict(inputs) | dict(pixels(opened, return_tensors="pt"))
    # Special tokens that end nothing, and rows without a token: hive_jax never writes
    # them, and random weights would.
    tokenizer = load(run).tokenizer
    ends = model.generation_config.eos_token_id
    never = {*tokenizer.special_ids, *range(tokenizer.vocab_size, 512)}
    out = model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        suppress_tokens=sorted(never.difference(ends)),
    )
    new = out[0, inputs["input_ids"].shape[1] :].tolist()
    expected = auto.decode(new, skip_special_tokens=True).strip()
    for path in (run, exported):
        loaded = load(path)
        assert loaded.chat
        answers = loaded.generate([opened], [QUESTION], max_new_tokens=NEW_TOKENS)
        assert answers == [expected]
        ids = loaded.generator(Decoding(NEW_TOKENS)).ids(
            [Prompt(QUESTION, loaded.preprocess([opened])[0])]
        )
        assert ids == [new]
    options = ["--run", str(run), "--max_new_tokens", str(NEW_TOKENS)]
    assert chat.main([str(image), QUESTION, *options]) == 0
    assert capsys.readouterr().out.strip() == expected


def test_chat_asks_with_the_history(made, image, capsys):
    """A second question comes after the first and its answer."""
    _, run, _ = made("chatml", "hive")
    options = ["--run", str(run), "--max_new_tokens", str(NEW_TOKENS)]
    assert chat.main([str(image), "one?", "two?", *options]) == 0
    model = load(run)
    pixels = model.preprocess([Image.open(image)])[0]
    generator = model.generator(Decoding(NEW_TOKENS))
    (first,) = generator([Prompt("one?", pixels)])
    (second,) = generator([Prompt("two?", pixels, 1, (("one?", first),))])
    assert capsys.readouterr().out == f"{first}\n{second}\n"
    text = model.tokenizer.chat_format.render(
        Prompt("two?", history=(("one?", first),)).sample(chat=True)
    ).text
    reference = transformers.AutoTokenizer.from_pretrained(model.config.data.tokenizer)
    messages = [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two?"},
    ]
    assert text == reference.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


def test_generation_ends_at_the_end_token_and_not_at_a_newline(tmp_path):
    """The end token of the template, which Gemma's tokenizer does not declare."""
    FORMATS["gemma"][0](tmp_path / "tokenizer")
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    config = run_config("hive of llama")
    data = dataclasses.replace(config.data, tokenizer=str(tmp_path / "tokenizer"))
    save_random(
        dataclasses.replace(config, data=data), str(tmp_path / "run"), chat=True
    )
    end, newline = tokenizer.chat_end_id, tokenizer.encode("\n")[0][-1]
    assert end not in tokenizer.end_ids

    def generated(likeliest):
        """The ids of a model whose likeliest first token is made this one."""
        model = load(str(tmp_path / "run"))
        (ids,) = model.generator(Decoding(2)).ids([Prompt(QUESTION)])
        name = "output_embedding"
        head = np.array(model.params["llm"]["lm_head"][name])
        rows = np.moveaxis(head, head.shape.index(512), 0)
        rows[likeliest] = 100 * rows[ids[0]]
        params = dict(model.params)
        params["llm"] = params["llm"] | {"lm_head": {name: head}}
        changed = dataclasses.replace(model, params=params)
        return changed.generator(Decoding(2)).ids([Prompt(QUESTION)])[0]

    assert generated(end) == [end]
    assert generated(newline)[0] == newline and len(generated(newline)) == 2


def test_another_template_in_the_workdir_is_named(made, tmp_path):
    _, run, _ = made("chatml", "hive")
    import shutil

    shutil.copytree(run, tmp_path / "run")
    config = load(run).config.data.tokenizer
    shutil.copytree(config, tmp_path / "run" / "tokenizer")
    file = tmp_path / "run" / "tokenizer" / "chat_template.jinja"
    file.write_text(
        json.loads((file.parent / "tokenizer_config.json").read_text())[
            "chat_template"
        ].replace("helpful", "rude")
    )
    with pytest.raises(CheckpointError, match="has another chat template"):
        export(str(tmp_path / "run"), "hive", str(tmp_path / "export"))


def test_newline_ends_is_refused(made, tmp_path):
    _, run, _ = made("chatml", "vlm")
    with pytest.raises(CheckpointError, match="answers of this model end with"):
        export(str(run), "vlm", str(tmp_path / "export"), newline_ends=True)
