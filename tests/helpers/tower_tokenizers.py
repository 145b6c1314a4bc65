"""Small tokenizers of SigLIP and SigLIP 2 in the formats of their folders, and odd texts."""

import io
import json
import random
from pathlib import Path

CORPUS = 20 * (
    "a photo of an owl sitting on a branch",
    "the quick brown fox jumps over the lazy dog",
    "Two children play, one sings!",
    "un café à Zürich, naïve",
    "日本語 の テキスト",
    "it's 42 degrees; isn't it?",
)
_PIECES = (
    *("A Photo", "of", "an OWL!", "it's", "don't", "  two  ", "children play", "#tag"),
    *("é", "ÀÉÎ", "e\u0301", "ΟΔΟΣ", "Σ", "İstanbul", "ẞ", "ﬁ", "½", "“quote”", "…"),
    *(
        "日本語",
        "ไทย",
        "مرحبا",
        "🦉",
        "👩‍👩‍👧",
        "👍🏽",
        "\n",
        "\t",
        "\u200b",
        "\xa0",
        "\x1c",
    ),
    *("<eos>", "</s>", "<unk>", "<pad>", "<bos>", "<mask>", "▁", "42", "3.14", "(x)"),
    *("http://a.b/c?d=e", "~", "\\", "the quick brown fox"),
)


def odd_texts(count: int = 500) -> list[str]:
    """Texts of capitals, punctuation, accents, emoji and other scripts; the first are
    empty, blank, or far too long."""
    rng = random.Random(0)
    texts = ["", " ", "\n", ".", "...", "Word, " * 300, "a" * 1000, "!" * 1000]
    while len(texts) < count:
        pieces = rng.choices(_PIECES, k=rng.choice((1, 2, 3, 5, 10, 40)))
        texts.append("".join(p + rng.choice(("", " ", ", ")) for p in pieces))
    return texts


def write_siglip(folder: Path, settings: dict | None = None) -> None:
    """Writes spiece.model, with the special tokens of SigLIP's vocabulary.

    Args:
      folder: that of the weights.
      settings: content of tokenizer_config.json; None for no such file.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in CORPUS]),
        model_writer=model,
        vocab_size=150,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    _write_settings(folder, settings)


# As the released folders have it.
SIGLIP2_SETTINGS = {
    "tokenizer_class": "GemmaTokenizer",
    "add_bos_token": False,
    "add_eos_token": True,
    "padding_side": "right",
    "bos_token": "<bos>",
    "eos_token": {"__type": "AddedToken", "content": "<eos>", "special": True},
    "pad_token": "<pad>",
    "model_input_names": ["input_ids"],
}


def write_siglip2(folder: Path, settings: dict | None = SIGLIP2_SETTINGS) -> None:
    """Writes a tokenizer.json like Gemma's: BPE with byte fallback.

    Args:
      folder, settings: as for `write_siglip`.
    """
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(
        models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][: len(special)]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_settings(folder, settings)


def _write_settings(folder: Path, settings: dict | None) -> None:
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
