"""MME, GQA, OK-VQA and ScienceQA of tabletop, in their authors' file formats.

The scenes are of the split "test", which no model is trained on.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hive_jax.data.image_io import encode_png
from hive_jax.data.tabletop.dataset import Tabletop
from hive_jax.data.tabletop.questions import ASKERS, CLAIMS, LETTERS, true_and_false
from hive_jax.data.tabletop.render import render
from hive_jax.data.tabletop.scene import Scene, scene
from hive_jax.data.tabletop.templates import article
from hive_jax.errors import ConfigError, OutputError

_GQA_TYPES = {  # structural and semantic, as GQA names them
    "material": ("query", "attr"),
    "colour": ("query", "attr"),
    "size": ("query", "attr"),
    "shape": ("query", "cat"),
    "count": ("query", "obj"),
    "relation": ("query", "rel"),
    "yes_no": ("verify", "global"),
}
_OKVQA_TYPES = {"one": "material", "two": "colour", "three": "shape", "four": "size"}
# Synonyms that some annotators use, and their stems.
_SYNONYMS = {
    "striped": ("stripes", "stripe"),
    "dotted": ("dots", "dot"),
    "ringed": ("rings", "ring"),
    "large": ("big", "big"),
    "small": ("little", "little"),
}


def write_benchmarks(folder: str, count: int, seed: int, image_size: int = 64) -> None:
    """Writes folder/mme, folder/gqa, folder/okvqa and folder/scienceqa.

    The same arguments give the same files.

    Args:
      folder: to write; empty or absent.
      count: images of each; MME has two questions of each image, the others one.
      seed: of the scenes.
      image_size: side of the images in pixels.

    Raises:
      ConfigError: `count` is not 1 or more, or another number is out of range.
      OutputError: `folder` is not empty, or cannot be written.
    """
    if count < 1:
        raise ConfigError(f"count is {count}; expected 1 or more")
    Tabletop("test", seed=seed, image_size=image_size)  # refuses numbers out of range
    root = Path(folder)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise OutputError(f"{folder} is not empty; choose another folder")
    try:
        for name, write in _WRITERS.items():
            write(root / name, count, seed, image_size)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error}") from error


def _asked(kinds, count: int, seed: int, ask: Callable) -> Iterator[tuple]:
    """(index, scene, kind, question, its random numbers) of `count` scenes.

    The kinds take turns; scenes for which a kind is not possible are skipped.
    """
    indices = itertools.count()
    for kind in itertools.islice(itertools.cycle(kinds), count):
        for index in indices:
            one = scene("test", seed, index)
            rng = one.stream(3)
            if question := ask(one, kind, rng):
                yield index, one, kind, question, rng
                break


def _ask(one: Scene, kind: str, rng: np.random.Generator):
    return ASKERS[kind](one, rng)


def _write_mme(root: Path, count: int, seed: int, image_size: int) -> None:
    asked = _asked(CLAIMS, count, seed, true_and_false)
    for index, one, category, questions, rng in asked:
        # The larger categories of MME keep images and questions apart.
        apart = category == "artwork"
        texts = root / category / ("questions_answers_YN" if apart else "")
        images = root / category / ("images" if apart else "")
        lines = [
            f"{question} Please answer yes or no.\t{answer}\n"
            for question, answer in zip(questions, ("Yes", "No"), strict=True)
        ]
        # Of MME's pairs either answer comes first.
        if rng.random() < 0.5:
            lines.reverse()
        _write(texts / f"{index:06d}.txt", "".join(lines))
        _save(one, image_size, images / f"{index:06d}.jpg")


def _write_gqa(root: Path, count: int, seed: int, image_size: int) -> None:
    records = {}
    for index, one, kind, question, _ in _asked(_GQA_TYPES, count, seed, _ask):
        structural, semantic = _GQA_TYPES[kind]
        types = {"structural": structural, "semantic": semantic, "detailed": kind}
        records[f"{index:08d}"] = {
            "imageId": f"n{index}",
            "question": question.question,
            "answer": question.answer,
            "isBalanced": True,
            "types": types,
        }
        _save(one, image_size, root / "images" / f"n{index}.jpg")
    _write(root / "testdev_balanced_questions.json", json.dumps(records))


def _write_okvqa(root: Path, count: int, seed: int, image_size: int) -> None:
    keys = {kind: key for key, kind in _OKVQA_TYPES.items()}
    questions, annotations = [], []
    for index, one, kind, question, rng in _asked(keys, count, seed, _ask):
        # Other than the id of the image, so that a reader that confuses them fails.
        about = {"image_id": index, "question_id": 10 * index + 5}
        right = question.answer, question.answer
        said = [right] * 3 + [_SYNONYMS.get(question.answer, right)] * 2
        # Five annotators, each of whom counts twice, make OK-VQA's ten.
        people = [said[i] for i in rng.permutation(5).repeat(2)]
        answers = [
            {
                "answer_id": number,
                "raw_answer": raw,
                "answer": stem,
                "answer_confidence": "yes",
            }
            for number, (raw, stem) in enumerate(people, 1)
        ]
        questions.append(about | {"question": question.question})
        annotations.append(about | {"question_type": keys[kind], "answers": answers})
        _save(one, image_size, root / f"val2014/COCO_val2014_{index:012d}.jpg")
    path = root / "OpenEnded_mscoco_val2014_questions.json"
    _write(path, json.dumps({"questions": questions}))
    annotated = {"annotations": annotations, "question_types": _OKVQA_TYPES}
    _write(root / "mscoco_val2014_annotations.json", json.dumps(annotated))


def _write_scienceqa(root: Path, count: int, seed: int, image_size: int) -> None:
    """Every second question has a text instead of an image."""
    problems = {}
    asked = _asked(("choice",), count, seed, _ask)
    for number, (index, one, _, question, rng) in enumerate(asked):
        with_image = number % 2 == 0
        problems[str(index)] = {
            "question": question.question,
            "choices": question.choices,
            "answer": LETTERS.index(question.answer),
            "hint": "" if with_image else _description(one, rng),
            "image": "image.png" if with_image else None,
            "task": "closed choice",
            "subject": "natural science" if with_image else "language science",
            "split": "test",
        }
        if with_image:
            _write(
                root / "images/test" / str(index) / "image.png",
                encode_png(render(one, image_size)),
            )
    _write(root / "problems.json", json.dumps(problems))
    splits = {"train": [], "val": [], "test": list(problems)}
    _write(root / "pid_splits.json", json.dumps(splits))


def _description(one: Scene, rng: np.random.Generator) -> str:
    """All attributes of all toys, a sentence each."""
    things = [one.things[i] for i in rng.permutation(len(one.things))]
    words = [f"{t.size} {t.material} {t.colour} {t.shape}" for t in things]
    return " ".join(f"There is {article(noun)}." for noun in words)


def _save(one: Scene, image_size: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = render(one, image_size)
    # Without chroma subsampling, which blurs the colours that questions ask for.
    Image.fromarray(pixels).save(path, "JPEG", quality=95, subsampling=0)


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


_WRITERS = {
    "mme": _write_mme,
    "gqa": _write_gqa,
    "okvqa": _write_okvqa,
    "scienceqa": _write_scienceqa,
}
