"""Scorers of the benchmarks, by lmms-eval's definitions."""

import pytest

from hive_jax.errors import DataError
from hive_jax.evaluation.benchmarks import gqa, mme, okvqa, pope, scienceqa, textvqa
from hive_jax.evaluation.benchmarks.base import Example, format_prompt
from hive_jax.evaluation.benchmarks.registry import TASKS
from hive_jax.evaluation.benchmarks.vqa_metric import agreement, normalised


def example(*answers: str, **about) -> Example:
    return Example("1", "What is it?", answers, "image", **about)


@pytest.mark.parametrize(
    ("prediction", "wanted"),
    [
        ("Yes", "yes"),
        ("No, it", "no"),
        ("Not sure", "no"),
        ("n", "no"),
        ("Y", "yes"),
        ("x", "other"),
        ("", "other"),
        (" yes. ", "yes"),
        ("The answer is yes", "other"),
        ("Nope", "no"),
        ("I know", "other"),
        ("eyes", "yes"),
        ("n.o.", "no"),
    ],
)
def test_mme_finds_yes_and_no(prediction, wanted):
    assert mme.parse(prediction) == wanted


def test_mme_points():
    """Of two images of a category one has both right: 75 + 50."""
    examples = [
        example("yes", group=group, kinds=(category,))
        for category, group in (
            *(("count", "1"), ("count", "1"), ("count", "2"), ("count", "2")),
            *(("OCR", "1"), ("OCR", "1")),
            *(("code_reasoning", "1"), ("code_reasoning", "1")),
        )
    ]
    predictions = ["Yes", "yes", "yes", "no", "No", "?", "Yes", "Yes."]
    scores = mme.score(examples, predictions)
    assert scores.totals == {"perception": 125, "cognition": 200}
    assert scores.counts == {"perception": 6, "cognition": 2}
    assert scores.parts["count"] == {"score": 125, "acc": 75, "acc+": 50, "n": 4}
    assert scores.parts["OCR"] == {"score": 0, "acc": 0, "acc+": 0, "n": 2}
    assert scores.parsed[3:6] == ("no", "no", "other")
    assert scores.correct == (1, 1, 1, 0, 0, 0, 1, 1)
    with pytest.raises(DataError, match="count, image 2 has 1 questions"):
        mme.score(examples[:3], predictions[:3])


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "official"),
    [
        ("Yes", "yes", 1, 1),
        (" yes. ", "yes", 1, 1),
        ("yes!", "yes", 1, 0),
        ("t-shirt", "t shirt", 0, 0),
        ("tshirt", "t-shirt", 1, 0),
        ("a dog", "dog", 0, 0),
        ("the left", "left", 0, 0),
        ("dining  table", "dining table", 0, 0),
        ("", "yes", 0, 0),
    ],
)
def test_gqa(prediction, answer, exact, official):
    scores = gqa.score([example(answer, kinds=("query",))], [prediction])
    assert scores.totals == {"exact_match": 100 * exact, "official": 100 * official}
    assert scores.parts == {"query": {"accuracy": 100 * exact, "n": 1}}


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("The Eiffel Tower.", "eiffel tower"),
        ("two dogs", "2 dogs"),
        ("1,000", "1000"),
        ("dont know", "don't know"),
        ("a/b", "b"),
        ("t-shirt", "t shirt"),
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        ("it's red", "it 's red"),
        ("none", "0"),
        ("ten o'clock", "10 o'clock"),
        ("oclock yall'd've youd've", "o'clock y'all'd've you'd've"),
        ("couldn'tve twas ow's'at", "couldn't've 'twas ow 's'at"),
        ("somebody'd", "somebodyd"),
        ("well, id go", "well id go"),
        (" - 5 -5", "5 5"),
        ("red-ish - blue", "redish blue"),
        ("a\tb\nc", "b c"),
        ("." * 40, "." * 8),
        ("?!", ""),
    ],
)
def test_answers_are_normalised_as_the_server_does(answer, wanted):
    assert normalised(answer) == wanted


def test_agreement_leaves_each_person_out_once():
    """0, .3, .6, .9 and then 1, for 0 to 10 who said the same."""
    for said in range(11):
        people = ["dog"] * said + ["cat"] * (10 - said)
        wanted = min(1, 0.3 * said) if said < 4 else 1
        assert agreement("dog", people) == pytest.approx(wanted, abs=1e-15)


def test_okvqa_and_textvqa_score_agreement():
    people = ("race",) * 3 + ("motocross",) * 6 + ("The ponies!",)
    one = example(*people, kinds=("Sports",))
    for prediction, exact in (
        ("Race.", 90),
        ("racing", 0),
        ("motocross", 100),
        ("ponies", 30),
        ("unanswerable", 0),
    ):
        scores = okvqa.score([one], [prediction])
        assert scores.totals == pytest.approx({"exact_match": exact})
        assert scores.parts["Sports"]["accuracy"] == pytest.approx(exact)
    assert textvqa.score([one], ["Race."]).totals == pytest.approx({"exact_match": 90})


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        *((text, True) for text in ("B", "b", "B.", " B ", "B. b", "B. yes")),
        *((text, False) for text in ("(B)", "B)", "The answer is B.", "b. b")),
        *((text, False) for text in ("", "A", "A. B", "BB", "yes")),
    ],
)
def test_scienceqa(prediction, right):
    scores = scienceqa.score([example("B", choices=("yes", "no"))], [prediction])
    assert scores.totals == {"image_only": 100 * right}


def test_scienceqa_counts_questions_with_an_image_apart():
    examples = [
        Example("1", "?", ("A",), "image", ("x", "y")),
        Example("2", "?", ("B",), None, ("x", "y")),
        Example("3", "?", ("B",), None, ("x", "y")),
    ]
    scores = scienceqa.score(examples, ["B", "B", "B"])
    assert scores.totals == {"full": pytest.approx(200 / 3), "image_only": 0}
    assert scores.counts == {"full": 3, "image_only": 1}
    assert scienceqa.score(examples[1:], ["B", "A"]).totals == {"full": 50}


def test_pope():
    examples = [example(a, kinds=("random",)) for a in ("yes", "yes", "no", "no", "no")]
    scores = pope.score(examples, [" Yes ", "no", "no", "yes", "No."])
    assert scores.totals == pytest.approx(
        {"accuracy": 40, "precision": 50, "recall": 50, "f1": 50, "yes_ratio": 40}
    )
    none = pope.score(examples[2:], ["?"] * 3).totals
    assert none == dict.fromkeys(none, 0)


def test_scores_need_a_prediction_for_each_example():
    for task in TASKS.values():
        with pytest.raises(ValueError, match="zip"):
            task.score([example("yes", kinds=("count",), group="1")], ["yes", "yes"])


SHORTLY = "\nAnswer the question using a single word or phrase."
UNLESS = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


def test_prompts_of_lmms_eval():
    plain = Example("1", "Is it {red}?", ("yes",))
    for name in ("mme", "gqa", "pope", "textvqa"):
        asked = format_prompt(TASKS[name].prompts["lmms_eval"], plain)
        assert asked == "Is it {red}?" + SHORTLY
    asked = format_prompt(TASKS["okvqa"].prompts["lmms_eval"], plain)
    assert asked == "Is it {red}?" + UNLESS + SHORTLY
    letter = "\nAnswer with the option's letter from the given choices directly."
    options = Example("1", "Which?", ("A",), choices=("a cat", "{b}"))
    template = TASKS["scienceqa"].prompts["lmms_eval"]
    assert format_prompt(template, options) == "Which?\nA. a cat\nB. {b}" + letter
    hinted = Example("1", "Which?", ("A",), choices=("x", "y"), hint="Look.")
    assert format_prompt(template, hinted).startswith(
        "Context: Look.\nWhich?\nA. x\nB. y"
    )
    template = TASKS["scienceqa"].prompts["plain"]
    assert format_prompt(template, options) == "Which? (A) a cat (B) {b}"
