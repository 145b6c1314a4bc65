"""Small tokenizers of the kinds that decoders have, in folders as they are published."""

import io
import json
from pathlib import Path

from helpers.tower_tokenizers import CORPUS

# The splitting of Llama 3 and of Qwen 2; they differ in how many digits stay together.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")


def _bytes_bpe(special, pre_tokenizer, normalizer=None, plain=(), **options):
    """A byte-level BPE of 400 tokens, and after them the special and added ones."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE(**options))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([*special])
    tokenizer.add_tokens([*plain])
    return tokenizer


def _split(digits):
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT % digits), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _write(folder, tokenizer, config, generation=None):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(id): {"content": token.content, "special": token.special}
        for id, token in tokenizer.get_added_tokens_decoder().items()
    }
    _write_json(
        folder / "tokenizer_config.json", {"added_tokens_decoder": added} | config
    )
    if generation is not None:
        _write_json(folder / "generation_config.json", generation)


def _write_json(path, content):
    path.write_text(json.dumps(content))


def write_gpt2(folder: Path) -> None:
    """Writes a tokenizer as SmolLM 2's: one special token with three roles, no padding."""
    from tokenizers import pre_tokenizers

    pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = _bytes_bpe(_QWEN[:1], pre)
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), _QWEN[0])
    _write(folder, tokenizer, {"tokenizer_class": "GPT2Tokenizer", **roles})


def write_qwen2(folder: Path) -> None:
    """Writes a tokenizer as Qwen 2's: NFC, no begin token but in the generation's
    settings, two ends, an added token that is not special."""
    from tokenizers import normalizers

    tokenizer = _bytes_bpe(_QWEN, _split(""), normalizers.NFC(), ["<tool_call>"])
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": _QWEN[2],
        "pad_token": _QWEN[0],
        "unk_token": None,
    }
    ids = [tokenizer.token_to_id(token) for token in _QWEN]
    generation = {"bos_token_id": ids[0], "eos_token_id": [ids[2], ids[0]]}
    _write(folder, tokenizer, config, generation | {"pad_token_id": ids[0]})


def write_llama3(folder: Path, special: tuple[str, ...] = _LLAMA3) -> None:
    """Writes a tokenizer as Llama 3's: whole words first, no padding."""
    from tokenizers import processors

    tokenizer = _bytes_bpe(special, _split("{1,3}"), ignore_merges=True)
    begin = tokenizer.token_to_id(_LLAMA3[0])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_LLAMA3[0]} $A", special_tokens=[(_LLAMA3[0], begin)]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": _LLAMA3[0], "special": True},
        "eos_token": _LLAMA3[2],
    }
    ends = [tokenizer.token_to_id(token) for token in _LLAMA3[1:]]
    _write(folder, tokenizer, config, {"bos_token_id": begin, "eos_token_id": ends})


def _sentencepiece(folder, name, **options):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(model.getvalue())


def write_llama2(folder: Path) -> None:
    """Writes a tokenizer.model as Llama 2's: BPE with byte fallback."""
    options = {"model_type": "bpe", "vocab_size": 420, "byte_fallback": True}
    _sentencepiece(
        folder,
        "tokenizer.model",
        **options,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
    )
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", "pad_token": None, **roles}
    _write_json(folder / "tokenizer_config.json", config | {"legacy": True})


def write_t5(folder: Path) -> None:
    """Writes a spiece.model as T5's and SigLIP's: Unigram without bytes."""
    options = {"model_type": "unigram", "vocab_size": 150, "character_coverage": 1.0}
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    _sentencepiece(folder, "spiece.model", **options, **ids)
    roles = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, **roles}
    _write_json(folder / "tokenizer_config.json", config)


def to_tokenizer_json(folder: Path) -> None:
    """Converts a SentencePiece model, as the published folders have it."""
    import transformers
    from tokenizers import normalizers

    reference = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = reference.backend_tokenizer
    if (folder / "tokenizer.model").is_file():
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.pre_tokenizer = None
    tokenizer.save(str(folder / "tokenizer.json"))
    for name in ("tokenizer.model", "spiece.model"):
        (folder / name).unlink(missing_ok=True)
