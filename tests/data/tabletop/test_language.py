"""What captions, questions and answers say of a scene is true."""

import re

import numpy as np
import pytest

from hive_jax.data.tabletop.language import MODES, segments
from hive_jax.data.tabletop.questions import ASKERS, LETTERS, VALUES, questions
from hive_jax.data.tabletop.scene import SHAPES, Scene, Thing
from hive_jax.data.tabletop.templates import COUNTS, OPPOSITES, TAG_NAMES

WORD_KIND = {word: kind for kind, words in VALUES.items() for word in words}


PLURAL = {shape + ("es" if shape == "cross" else "s"): shape for shape in SHAPES}


NOUN = "(?:{}|object)".format("|".join(SHAPES))


TOY = (
    rf"(?:an?|the) (?:(?:{'|'.join(WORD_KIND)}) ){{0,3}}?{NOUN}\b"
    r"(?: with a \w+ surface)?"
)


RELATION = r"(?:to the )?(left|right) of|(behind)|(in front) of"


def matching(one: Scene, phrase: str) -> list[Thing]:
    """The toys that a phrase such as "a small red star" fits."""
    words = [word for word in phrase.lower().split() if word in WORD_KIND]
    return [
        thing
        for thing in one.things
        if all(getattr(thing, WORD_KIND[word]) == word for word in words)
    ]


def holds(first: Thing, relation: str, second: Thing) -> bool:
    """Whether a relation is there for all to see."""
    return {
        "left": second.x - first.x > 0.1,
        "right": first.x - second.x > 0.1,
        "behind": second.foot - first.foot > 0.1 and second.y > first.y,
        "in front": first.foot - second.foot > 0.1 and second.y < first.y,
    }[relation]


@pytest.mark.parametrize("mode", MODES)
def test_segments_end_with_the_stop_mark(scenes, mode):
    alone = [one for one in scenes if len(one.things) == 1]
    for one in (alone if mode == "classes" else scenes)[:300]:
        written = segments(one, mode)
        assert [segment.target for segment in written] == [False, True][-len(written) :]
        for segment in written:
            assert segment.text.endswith("\n") and segment.text.count("\n") == 1
            assert segment.target or not segment.tags


@pytest.mark.parametrize("mode", ["captions", "vague"])
def test_marked_words_are_of_their_kind_and_in_the_scene(scenes, mode):
    sayable = {
        "relation": {"left", "right", "behind", "in front", "middle"},
        "count": set(COUNTS),
    }
    for one in scenes:
        (segment,) = segments(one, mode)
        previous_end = 0
        for start, end, kind in segment.tags:
            assert previous_end <= start < end and kind in TAG_NAMES
            previous_end = end
            word = segment.text[start:end].lower()
            if kind in sayable:
                assert word in sayable[kind]
            else:
                word = PLURAL.get(word, word)
                assert word in [getattr(thing, kind) for thing in one.things]
        marked = {segment.text[start:end].lower() for start, end, _ in segment.tags}
        said = set(re.findall(r"\w+", segment.text.lower()))
        assert (said & set(WORD_KIND)) <= marked


@pytest.mark.parametrize("mode", ["captions", "vague"])
def test_every_toy_in_a_caption_is_in_the_scene(scenes, mode):
    for one in scenes:
        (segment,) = segments(one, mode)
        toys = re.findall(TOY, segment.text.lower())
        assert len(toys) >= len(one.things)
        assert all(matching(one, toy) for toy in toys)


def test_relations_in_captions_are_true(scenes):
    found = 0
    plain = re.compile(rf"({TOY})(?: \w+)? (?:{RELATION}) ({TOY})")
    turned = re.compile(rf"^(?:{RELATION}) ({TOY}) \w+ ({TOY})")
    for one in scenes:
        text = segments(one, "captions")[0].text.lower()
        claims = []
        for first, *relation, second in plain.findall(text):
            claims.append((first, "".join(relation), second))
        for *relation, second, first in turned.findall(text):
            claims.append((first, "".join(relation), second))
        for first, relation, second in claims:
            found += 1
            assert any(
                holds(this, relation, that)
                for this in matching(one, first)
                for that in matching(one, second)
                if this is not that
            ), text
    assert found > 500


def test_places_and_counts_in_captions_are_true(scenes):
    placed = 0
    for one in scenes:
        text = segments(one, "captions")[0].text.lower()
        for side in re.findall(r"(left|right) side|in the (?:middle)", text):
            placed += 1
            x = one.things[0].x
            assert {"left": x < 0.4, "right": x > 0.6, "": 0.4 < x < 0.6}[side]
        for count in re.findall(r"(\w+) objects?\b (?!is|with|and)", text):
            if count in COUNTS:
                assert COUNTS.index(count) == len(one.things)
        for count, shapes in re.findall(r"(two|three) (?:of them are )?(\w+)", text):
            if shapes in PLURAL:
                shape = PLURAL[shapes]
                held = [thing.shape for thing in one.things].count(shape)
                assert COUNTS.index(count) == held
    assert placed > 100


def test_captions_say_what_their_mode_promises(scenes):
    def share(mode: str, kind: str, scenes: list[Scene]) -> float:
        said = [[k for *_, k in segments(one, mode)[0].tags] for one in scenes]
        toys = sum(len(one.things) for one in scenes)
        return sum(kinds.count(kind) for kinds in said) / toys

    alone = [one for one in scenes if len(one.things) == 1]
    assert share("captions", "material", alone) == 1
    assert 0.85 < share("captions", "colour", alone) <= 0.95
    assert 0.02 < share("vague", "material", scenes) < 0.08
    assert 0.40 < share("vague", "colour", scenes) < 0.50
    assert 0.35 < share("vague", "size", scenes) < 0.45
    assert share("vague", "shape", scenes) > 0.85


def test_text_is_a_quarter_questions(scenes):
    asked = np.mean([len(segments(one, "text")) == 2 for one in scenes])
    assert 0.2 < asked < 0.3


def right_answer(one: Scene, question: str) -> str:
    """Answers a question from its text alone."""
    text = question.lower()
    if text.startswith("how many"):
        noun = re.match(r"how many (.+?) are", text)[1].removesuffix(" objects")
        word = PLURAL.get(noun, noun)
        return COUNTS[len(matching(one, "" if word == "objects" else word))]
    toys = re.findall(TOY, text)
    if text.startswith("is there"):
        return "yes" if matching(one, toys[0]) else "no"
    (first,) = matching(one, toys[0])  # the question must point at one toy only
    if len(toys) == 2:
        (second,) = matching(one, toys[1])
        true = [r for r in OPPOSITES if holds(first, r, second)]
        offered = re.findall("left|right|behind|in front", text)
        if len(offered) == 1:
            return "yes" if offered[0] in true else "no"
        if not offered:  # the direction in which they are farther apart
            across = abs(first.x - second.x) > abs(first.foot - second.foot)
            offered = ("left", "right") if across else ("behind", "in front")
        (answer,) = [r for r in true if r in offered]
        return answer
    if text.endswith("small or large?"):
        return first.size
    if text.startswith("is "):
        word = text.rstrip("?").split()[-1]
        return "yes" if getattr(first, WORD_KIND[word]) == word else "no"
    asked = re.search("shape|colour|size", text)
    return getattr(first, asked[0] if asked else "material")


def test_questions_are_answered_rightly(scenes):
    kinds = set()
    for one in scenes:
        asked = questions(one)
        assert len({question.kind for question in asked}) == len(asked) >= 5
        for question in asked:
            answer = question.answer
            if question.choices:
                assert len(set(question.choices)) == 4
                answer = question.choices[LETTERS.index(answer)]
            assert right_answer(one, question.question) == answer, question
            kinds.add(question.kind)
    assert kinds == set(ASKERS)


def test_answers_give_nothing_away(scenes):
    asked = [question for one in scenes for question in questions(one)]
    by_kind = {kind: [q.answer for q in asked if q.kind == kind] for kind in ASKERS}
    assert 0.45 < np.mean([answer == "yes" for answer in by_kind["yes_no"]]) < 0.55
    for letter in LETTERS:
        assert 0.2 < by_kind["choice"].count(letter) / len(by_kind["choice"]) < 0.3
    for side in ("left", "behind"):
        assert 0.15 < by_kind["relation"].count(side) / len(by_kind["relation"]) < 0.35


def test_an_answer_is_marked_with_what_it_is_about(scenes):
    for one in scenes[:300]:
        question, answer = segments(one, "questions")
        for start, end, kind in answer.tags:
            assert answer.text[start:end] + "\n" == answer.text
            if kind in VALUES:
                assert answer.text.strip() in VALUES[kind]
        assert "?" in question.text
