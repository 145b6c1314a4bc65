"""Samples as token arrays: the labels of each token."""

import dataclasses
import time

import numpy as np
import pytest

from hive_jax.data.sample_encoding import encode_sample, truncate_text
from hive_jax.data.tabletop.templates import TAG_NAMES
from hive_jax.data.types import Sample, Segment

COLOUR, SHAPE, COUNT = (TAG_NAMES.index(kind) for kind in ("colour", "shape", "count"))


IMAGE = np.zeros((8, 8, 3), np.uint8)


def encoded(tokenizer, segments, num_tokens=32, image=IMAGE, **changes):
    """Rows (text of the token, target, image_mask, tag), and the arrays."""
    segments = tuple(Segment(*segment) for segment in segments)
    sample = Sample(image, segments, **changes)
    row = encode_sample(sample, tokenizer, num_tokens, TAG_NAMES)
    assert {key: value.dtype for key, value in row.items()} == {
        "tokens": np.int32,
        "target": np.bool_,
        "image_mask": np.bool_,
        "tag": np.int32,
    }
    assert {value.shape for value in row.values()} == {(num_tokens,)}
    return row


def text_where(row, key, tokenizer, value=True):
    return tokenizer.decode(row["tokens"][row[key] == value])


def test_a_caption(tokenizer):
    row = encoded(
        tokenizer, [("a red cube", True, ((2, 5, "colour"), (6, 10, "shape")))]
    )
    length = 1 + len(tokenizer.encode("a red cube")[0])
    assert row["tokens"][0] == tokenizer.bos_id
    assert (row["tokens"][length:] == tokenizer.pad_id).all()
    assert row["target"].tolist() == [False] + [True] * (length - 1) + [False] * (
        32 - length
    )
    assert row["image_mask"].tolist() == [True] * length + [False] * (32 - length)
    assert text_where(row, "tag", tokenizer, COLOUR).strip() == "red"
    assert text_where(row, "tag", tokenizer, SHAPE).strip() == "cube"
    assert not row["tag"][length:].any()


def test_a_question_and_its_answer(tokenizer):
    row = encoded(
        tokenizer,
        [
            ("the ball is", False),
            (" two", True, ((1, 4, "count"),)),
            (". the cube is", False),
            (" red", True, ((1, 4, "colour"),)),
        ],
    )
    assert text_where(row, "target", tokenizer) == " two red"
    assert text_where(row, "image_mask", tokenizer) == (
        "the ball is two. the cube is red"
    )
    assert text_where(row, "tag", tokenizer, COUNT).strip() == "two"
    assert text_where(row, "tag", tokenizer, COLOUR).strip() == "red"


def test_an_image_in_the_middle(tokenizer):
    segments = [("look at", False), (" the table", False), (" a ball", True)]
    row = encoded(tokenizer, segments, image_before=1)
    assert text_where(row, "image_mask", tokenizer) == " the table a ball"
    assert not row["image_mask"][0]
    assert text_where(row, "target", tokenizer) == " a ball"
    first = encoded(tokenizer, segments, image_before=0)
    assert text_where(first, "image_mask", tokenizer) == "look at the table a ball"
    assert first["image_mask"][0]  # the begin-of-sequence token stands after it
    last = encoded(tokenizer, segments, image_before=2)
    assert text_where(last, "image_mask", tokenizer) == " a ball"


def test_a_sample_without_an_image(tokenizer):
    row = encoded(tokenizer, [("a red", False), (" cube", True)], image=None)
    assert not row["image_mask"].any()
    assert text_where(row, "target", tokenizer) == " cube"


@pytest.mark.parametrize("num_tokens", [2, 3, 5, 8])
def test_text_is_cut(tokenizer, num_tokens):
    segments = [("a red", False), (" cube on the table", True)]
    whole = encoded(tokenizer, segments)
    cut = encoded(tokenizer, segments, num_tokens)
    assert whole["tokens"][num_tokens] != tokenizer.pad_id
    for key, value in cut.items():
        np.testing.assert_array_equal(value, whole[key][:num_tokens])


@pytest.mark.parametrize("piece", ["a red cube ", "x", " ", "漢"])
def test_a_text_of_any_length_costs_no_more_than_a_long_one(tokenizer, piece):
    """What is kept of it is what it begins with, as if all had been tokenised."""
    long = Segment(piece * (40_000 // len(piece)))
    wanted = encode_sample(Sample(IMAGE, (long,)), tokenizer, 24)
    huge = Segment(piece * (30_000_000 // len(piece)))
    segments = (huge, Segment("not read", target=False))
    began = time.perf_counter()
    got = encode_sample(Sample(IMAGE, segments), tokenizer, 24)
    assert time.perf_counter() - began < 5  # the whole takes minutes
    for name, array in got.items():
        np.testing.assert_array_equal(array, wanted[name])


def test_a_text_that_is_not_far_too_long_is_read_to_its_end():
    segments = (Segment("a" * 60_000), Segment("b" * 5536, tags=((0, 9, "colour"),)))
    sample = Sample(IMAGE, segments, image_before=1)
    assert truncate_text(sample, 256) is sample
    more = dataclasses.replace(sample, segments=(*segments, Segment("c")))
    assert truncate_text(more, 257) is more
    cut = truncate_text(more, 256)
    assert [len(segment.text) for segment in cut.segments] == [60_000, 5536, 0]
    assert cut.image_before == 1 and cut.segments[:2] == segments


def test_empty_segments(tokenizer):
    row = encoded(tokenizer, [("", False), ("a ball", True), ("", True)])
    assert text_where(row, "target", tokenizer) == "a ball"
    empty = encoded(tokenizer, [("", True)])
    assert not empty["target"].any()
    assert (empty["tokens"][1:] == tokenizer.pad_id).all()


def test_every_byte_of_a_character_has_its_labels(tokenizer):
    """The tokens of one character share its span, or all but one have none."""
    row = encoded(
        tokenizer, [("é漢", False), ("👍ß", True, ((0, 1, "colour"),)), ("字", False)]
    )
    ids = row["tokens"]
    bytes_of = [len(text.encode()) for text in ("é漢", "👍", "ß", "字")]
    start = 1 + bytes_of[0]
    assert (ids[1 : 1 + sum(bytes_of)] > 3).all()
    assert ids[1 + sum(bytes_of)] == tokenizer.pad_id
    assert np.flatnonzero(row["target"]).tolist() == [*range(start, start + 6)]
    assert np.flatnonzero(row["tag"]).tolist() == [*range(start, start + 4)]
    assert row["image_mask"].sum() == 1 + sum(bytes_of)
    row = encoded(tokenizer, [("é", False), ("漢", True)], image_before=1)
    assert np.flatnonzero(row["image_mask"]).tolist() == [3, 4, 5]


def test_a_token_over_two_segments_is_where_it_ends(tabletop):
    (token, *_), spans = tabletop.encode(" red")
    assert spans == [(0, 4)]
    row = encoded(tabletop, [(" r", False), ("ed", True, ((0, 2, "colour"),))])
    assert row["tokens"][1] == token
    assert (row["target"][1], row["tag"][1]) == (True, COLOUR)
    row = encoded(tabletop, [(" r", True, ((1, 2, "colour"),)), ("ed", False)])
    assert (row["target"][1], row["tag"][1]) == (False, COLOUR)


class WithoutBos:
    """A vocabulary without a begin-of-sequence token: one token a character."""

    pad_id, eos_id, bos_id = 0, 0, None

    def encode(self, text):
        return [ord(c) for c in text], [(i, i + 1) for i in range(len(text))]


def test_without_bos_the_first_token_is_never_a_target():
    row = encoded(WithoutBos(), [("ab", True), ("c", False)], 4)
    assert row["tokens"].tolist() == [97, 98, 99, 0]
    assert row["target"].tolist() == [False, True, False, False]
    assert row["image_mask"].tolist() == [True, True, True, False]
