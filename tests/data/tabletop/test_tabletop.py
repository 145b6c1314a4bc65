import dataclasses
import re

import numpy as np
import pytest

from hive_jax.data.tabletop import Tabletop
from hive_jax.data.tabletop.language import MODES, segments
from hive_jax.data.tabletop.questions import ASKERS, LETTERS, VALUES, questions
from hive_jax.data.tabletop.render import render
from hive_jax.data.tabletop.scene import (
    COLOURS,
    MATERIALS,
    RADII,
    SHAPES,
    SPLITS,
    Scene,
    Thing,
    bucket,
    describe,
    scene,
)
from hive_jax.data.tabletop.templates import COUNTS, OPPOSITES, TAG_NAMES
from hive_jax.errors import ConfigError

WORD_KIND = {word: kind for kind, words in VALUES.items() for word in words}
PLURAL = {shape + ("es" if shape == "cross" else "s"): shape for shape in SHAPES}
NOUN = "(?:{}|object)".format("|".join(SHAPES))
TOY = (
    rf"(?:an?|the) (?:(?:{'|'.join(WORD_KIND)}) ){{0,3}}?{NOUN}\b"
    r"(?: with a \w+ surface)?"
)
RELATION = r"(?:to the )?(left|right) of|(behind)|(in front) of"


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene("train", 0, index) for index in range(1500)]


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


def test_samples_do_not_depend_on_order_or_instance():
    one, other = (Tabletop("train", text="text") for _ in range(2))
    forward = [one[index] for index in range(20)]
    for index in reversed(range(20)):
        sample = other[index]
        assert sample.segments == forward[index].segments
        np.testing.assert_array_equal(sample.image, forward[index].image)


def test_seeds_and_indices_give_different_scenes():
    scenes = [scene("train", seed, index) for seed in (0, 1) for index in range(100)]
    assert len({describe(one.things) for one in scenes}) > 195


def test_splits_share_no_scene():
    seen = {}
    for split in SPLITS:
        things = [scene(split, 0, index).things for index in range(300)]
        assert all(bucket(one) in SPLITS[split] for one in things)
        seen[split] = {describe(one) for one in things}
    dealt = sorted(bucket for buckets in SPLITS.values() for bucket in buckets)
    assert dealt == list(range(16))
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_the_description_ignores_the_order_of_the_toys(scenes):
    one = next(one for one in scenes if len(one.things) == 3)
    assert describe(one.things) == describe(one.things[::-1])


def test_toys_stay_in_the_picture_and_apart(scenes):
    for one in scenes:
        for i, thing in enumerate(one.things):
            low, high = RADII[thing.size]
            assert low <= thing.radius <= high
            assert thing.radius < thing.x < 1 - thing.radius
            assert thing.radius < thing.y < 1 - thing.radius
            for other in one.things[:i]:
                apart = np.hypot(thing.x - other.x, thing.y - other.y)
                assert apart > thing.radius + other.radius


def test_attributes_are_about_equally_frequent(scenes):
    things = [thing for one in scenes for thing in one.things]
    for attribute in ("shape", "colour", "material"):
        values = [getattr(thing, attribute) for thing in things]
        shares = [values.count(value) / len(values) for value in VALUES[attribute]]
        even = 1 / len(VALUES[attribute])
        assert 0.8 * even < min(shares) and max(shares) < 1.2 * even
    alone = np.mean([len(one.things) == 1 for one in scenes])
    assert 0.45 < alone < 0.55


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


@pytest.mark.parametrize("image_size", [8, 33, 64, 224])
def test_any_image_size(image_size):
    image = Tabletop("test", image_size=image_size)[3].image
    assert image.shape == (image_size, image_size, 3) and image.dtype == np.uint8
    assert image.std() > 10


def face(material: str, colour: str, key: int) -> np.ndarray:
    """The middle of a large toy's picture, float64[12, 12]."""
    thing = Thing("square", colour, "large", material, 0.5, 0.55, 0.21)
    return render(Scene((thing,), key))[29:41, 26:38].mean(-1)


def test_textures_can_be_seen_and_brightness_gives_little_away():
    plain = np.array([face("plain", "green", key) for key in range(40)])
    for material in MATERIALS[1:]:
        faces = np.array([face(material, "green", key) for key in range(40)])
        assert faces.std((1, 2)).min() > 2 * plain.std((1, 2)).max()
        means = faces.mean((1, 2))
        spread = plain.mean((1, 2)).std()
        assert abs(means.mean() - plain.mean()) < spread


def test_colours_can_be_told_apart():
    def hue(colour: str) -> np.ndarray:
        thing = Thing("circle", colour, "large", "plain", 0.5, 0.55, 0.21)
        mean = render(Scene((thing,), 1))[29:41, 26:38].mean((0, 1))
        return mean / np.linalg.norm(mean)

    hues = np.array([hue(colour) for colour in COLOURS])
    alike = hues @ hues.T - np.eye(len(COLOURS))
    assert alike.max() < 0.985


def test_text_only_samples_have_no_image():
    with_image, without = Tabletop("train"), Tabletop("train", with_image=False)
    assert without[5].image is None
    assert without[5].segments == with_image[5].segments


def test_lengths_and_bounds():
    assert len(Tabletop("train")) == 1_048_576
    assert len(Tabletop("validation")) == len(Tabletop("test")) == 4096
    source = Tabletop("train", size=3, with_image=False)
    assert len(source) == len(list(source)) == 3
    for index in (3, -1):
        with pytest.raises(IndexError, match="which has 3"):
            source[index]


def test_the_fingerprint_tells_arguments_apart():
    sources = [
        Tabletop("train"),
        Tabletop("test"),
        Tabletop("train", seed=1),
        Tabletop("train", image_size=32),
        Tabletop("train", text="vague"),
        Tabletop("train", with_image=False),
        Tabletop("train", size=10),
    ]
    assert len({source.fingerprint for source in sources}) == len(sources)
    assert Tabletop("train").fingerprint == sources[0].fingerprint


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "validate"}, "did you mean 'validation'"),
        ({"split": "train", "text": "caption"}, "did you mean 'captions'"),
        ({"split": "train", "image_size": 0}, "image_size must be a whole number"),
        ({"split": "train", "seed": -1}, "seed must be a whole number"),
        ({"split": "train", "size": 0}, "size must be a whole number"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Tabletop(**arguments)


def test_scenes_are_frozen(scenes):
    with pytest.raises(dataclasses.FrozenInstanceError):
        scenes[0].key = 1
