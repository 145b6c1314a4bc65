"""Runs on conversations: what is checked before the first step, and what is stored."""

import dataclasses

import pytest
from helpers.chat_templates import CHATML, add_template, write_llama3, write_qwen2
from helpers.exported_runs import run_config
from helpers.llava_sets import record, write_set

from hive_jax.config import RunConfig
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.errors import CheckpointError, ConfigError, DataError
from hive_jax.inference.model import load
from hive_jax.training.experiment import Experiment
from hive_jax.training.resolve import resolve_config
from hive_jax.training.trainer import train
from tools.fault_suite.image_files import encoded, photograph

COUNT = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tokenizer and a small set: (folder of the tokenizer, data.source)."""
    folder = tmp_path_factory.mktemp("chat")
    write_qwen2(folder / "tokenizer")
    add_template(folder / "tokenizer", CHATML)
    files = {record(i)["image"]: encoded(photograph(i)) for i in range(COUNT)}
    source = write_set(folder, files, [record(i) for i in range(COUNT)])["folder"]
    return folder / "tokenizer", f"{source},form=chat"


def config_of(tokenizer, source, kind="hive of qwen2", **changes) -> RunConfig:
    config = run_config(kind)
    data = dataclasses.replace(
        config.data,
        source=source,
        tokenizer=str(tokenizer),
        num_tokens=96,
        validation_size=8,
        buckets=(),
    )
    changes = {"total_steps": 2, "batch_size": 8, "eval_every": 2} | changes
    return dataclasses.replace(config, data=data, **changes)


def test_a_run_stores_its_template_and_answers_with_it(made, tmp_path):
    """The original is gone by then; a resume with another template is refused."""
    _, source = made
    write_qwen2(tmp_path / "tokenizer")
    config = config_of(tmp_path / "tokenizer", source)
    assert train(config, str(tmp_path / "run")) == 0
    add_template(tmp_path / "tokenizer", CHATML.replace("helpful", "rude"))
    longer = dataclasses.replace(config, total_steps=4)
    with pytest.raises(CheckpointError, match=r"inputs\.chat_template"):
        train(longer, str(tmp_path / "run"))
    (tmp_path / "tokenizer").rename(tmp_path / "gone")
    model = load(str(tmp_path / "run"))
    assert model.chat
    assert "helpful" in model.tokenizer.chat_template


def test_lines_and_captions_use_no_template(made, tmp_path):
    tokenizer, source = made
    plain = source.replace(",form=chat", "")
    run = Experiment(resolve_config(config_of(tokenizer, plain)))
    assert run.meta(0)["inputs"]["chat_template"] == ""
    file = tmp_path / "tokenizer"
    write_qwen2(file, "")
    run = Experiment(resolve_config(config_of(file, source)))
    assert run.meta(0)["inputs"]["chat_template"] == ""


def test_templates_that_a_run_cannot_use_end_it_at_once(made, tmp_path):
    _, source = made
    write_qwen2(tmp_path, "{{ messages[0].content }}")
    with pytest.raises(DataError, match="after an answer"):
        Experiment(resolve_config(config_of(tmp_path, source)))
    # Tokens around the roles, after the last row of the embedding table.
    write_llama3(tmp_path / "llama3")
    config = config_of(tmp_path / "llama3", source, "hive of llama")
    num_rows = load_tokenizer(config.data.tokenizer).vocab_size
    decoder = dataclasses.replace(config.model.decoder, vocab_size=num_rows)
    model = dataclasses.replace(config.model, decoder=decoder)
    small = dataclasses.replace(config, model=model)
    with pytest.raises(ConfigError, match=r"writes '<\|end_header_id\|>', id"):
        Experiment(resolve_config(small))


def test_text_towers_take_no_conversations(made):
    tokenizer, source = made
    config = config_of(tokenizer, source, "contrastive")
    data = dataclasses.replace(config.data, num_tokens=8)
    with pytest.raises(ConfigError, match="use form=plain"):
        Experiment(resolve_config(dataclasses.replace(config, data=data)))
