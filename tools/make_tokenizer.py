"""Trains the tokenizer of the built-in world: a byte-level BPE of 512 tokens.

    python tools/make_tokenizer.py --out hive_jax/assets/tokenizer.json

Any text can be written with it; the words of tabletop are single tokens. The file
that comes with the package is the output of this command.
"""

import argparse
import sys
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hive_jax.data.tabletop import Tabletop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"],  # Gemma's order
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.save(str(out))
    print(f"{out}: {tokenizer.get_vocab_size()} tokens")


def texts():
    """Every kind of text of 5000 scenes."""
    for mode in ("captions", "vague", "questions"):
        source = Tabletop("train", text=mode, with_image=False)
        for index in range(5000):
            yield "".join(segment.text for segment in source[index].segments)


if __name__ == "__main__":
    main()
