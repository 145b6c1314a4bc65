"""A run answers the questions of benchmarks, and is scored."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from hive_jax.config import MeshConfig, nearest
from hive_jax.console import log, progress_bar, text_table
from hive_jax.data.parallel import ordered_map
from hive_jax.data.sources.registry import checked_sources
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.data.transforms import decode
from hive_jax.errors import ConfigError
from hive_jax.evaluation.examples import Example, Examples, prompt
from hive_jax.evaluation.generate import Decoding, Generator, Prompt
from hive_jax.evaluation.kept import Kept, kept_in
from hive_jax.evaluation.subject import Subject, open_run
from hive_jax.evaluation.tasks import Task, find_task, read_task
from hive_jax.training import sharding

_THREADS = 8


def evaluate(
    init: str,
    tasks: Sequence[str],
    data: str,
    out: str,
    *,
    variant: str = "",
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> dict[str, dict]:
    """Answers and scores; what was answered before, under the same settings, is kept.

    Args:
      init: workdir of a run.
      tasks: names of tasks.TASKS.
      data: folder with a folder for each task.
      out: folder to write; out/TASK has samples.jsonl and result.json.
      variant: of the prompts, "lmms_eval" or "tabletop"; empty for the one that goes
        with the data of the run.
      batch_size: questions at once; changes no answer.
      max_new_tokens: of an answer; None for the task's own number.
      temperature, top_p, seed: see Decoding.

    Returns:
      The result of each task, as in result.json.

    Raises:
      HiveError: before the first question, for anything that can be known by then.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected 1 or more")
    asked = {name: (find_task(name), read_task(name, data)) for name in tasks}
    subject = open_run(init)
    variant = variant or _own_variant(subject)
    for name, (task, _) in asked.items():
        if variant not in task.prompts:
            known = ", ".join(task.prompts)
            raise ConfigError(
                f"--prompt is {variant!r}; expected one of {known} for {name}"
                + nearest(variant, task.prompts)
            )
    results = {}
    for name, (task, examples) in asked.items():
        limit = task.max_new_tokens if max_new_tokens is None else max_new_tokens
        decoding = Decoding(limit, temperature, top_p, seed, task.stop)
        folder = Path(out) / name
        settings = _settings(name, task, variant, examples, subject, decoding)
        with kept_in(folder, settings) as kept:
            if kept.result is None:
                _answer(kept, subject, task, variant, examples, decoding, batch_size)
                results[name] = _finish(kept, task, examples)
            else:
                log(f"{name}: finished already; its figures are in {folder}")
                results[name] = kept.result
    return results


def table(results: dict[str, dict]) -> str:
    """Scores, a line each."""
    rows = [
        (f"{name} {score}", f"{value:.2f}", str(result["n"]))
        for name, result in results.items()
        for score, value in result["scores"].items()
    ]
    return text_table(("task", "score", "questions"), rows)


def _own_variant(subject: Subject) -> str:
    trained_on = checked_sources(subject.config.data.source)[0].kind
    return "tabletop" if trained_on == "tabletop" else "lmms_eval"


def _settings(name, task: Task, variant, examples: Examples, subject, decoding) -> dict:
    template = task.prompts[variant]
    config = subject.config
    return {
        "task": name,
        "variant": variant,
        "prompt": template,
        "prompt_hash": hashlib.sha256(template.encode()).hexdigest()[:16],
        "n": len(examples),
        "data": examples.fingerprint,
        "decoding": {
            "max_new_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": decoding.seed,
            "stop": list(decoding.stop),
        },
        "preprocessing": config.data.preprocessing,
        "image_size": config.model.encoder.image_size,
        "checkpoint": subject.checkpoint,
    }


def _mesh() -> Mesh | None:
    """All devices of this process, for the rows of batches; None if there is one."""
    devices = jax.local_devices()
    return sharding.make_mesh(MeshConfig(), devices) if len(devices) > 1 else None


def make_generator(subject: Subject, decoding: Decoding) -> Generator:
    """Writes with a run's model, on all devices of this process."""
    mesh, params = _mesh(), subject.params
    if mesh is not None:
        where = sharding.sharded_params(mesh, params)
        params = jax.device_put(params, jax.tree.map(lambda x: x.sharding, where))
    tokenizer = load_tokenizer(subject.config.data.tokenizer)
    return Generator(subject.config, params, tokenizer, decoding, mesh)


def _answer(
    kept: Kept,
    subject: Subject,
    task: Task,
    variant: str,
    examples: Examples,
    decoding: Decoding,
    batch_size: int,
) -> None:
    """Has all questions answered that are not yet."""
    generator = make_generator(subject, decoding)
    texts = [prompt(task.prompts[variant], example) for example in examples]
    left = [i for i, example in enumerate(examples) if example.id not in kept.answers]
    batches = [*_batches(left, texts, generator, batch_size)]
    preprocessing = subject.config.data.preprocessing

    def load(number: int) -> list[Prompt]:
        return [
            Prompt(
                texts[i],
                _image(examples, examples[i], generator.image_size, preprocessing)
                if generator.sees_images
                else None,
                i,
            )
            for i in batches[number]
        ]

    done = len(examples) - len(left)
    with progress_bar(kept.folder.name, len(examples), done) as bar:
        loaded = ordered_map(load, range(len(batches)), _THREADS)
        for chosen, prompts in zip(batches, loaded, strict=True):
            outputs = generator(prompts, batch_size)
            kept.add(
                {"id": examples[i].id, "prompt": texts[i], "output": output}
                for i, output in zip(chosen, outputs, strict=True)
            )
            bar.update(len(chosen))


def _batches(
    indices: Sequence[int], texts: Sequence[str], generator: Generator, size: int
) -> Iterator[list[int]]:
    """Questions that are padded to the same length, so that no answer depends on the
    others of its batch."""
    by_length = {}
    for i in indices:
        by_length.setdefault(generator.length(Prompt(texts[i])), []).append(i)
    for _, same in sorted(by_length.items()):
        for start in range(0, len(same), size):
            yield same[start : start + size]


def _image(
    examples: Examples, example: Example, size: int, preprocessing: str
) -> np.ndarray | None:
    content = examples.image(example)
    if content is None:
        return None
    where = f"{examples.path}, {example.image}"
    return decode(content, size, preprocessing, where)


def _finish(kept: Kept, task: Task, examples: Examples) -> dict:
    records = [kept.answers[example.id] for example in examples]
    scores = task.score(examples, [record["output"] for record in records])
    samples = [
        {
            "id": example.id,
            "group": example.group,
            "kinds": list(example.kinds),
            "answers": list(example.answers),
            "prompt": record["prompt"],
            "output": record["output"],
            "parsed": parsed,
            "score": score,
        }
        for example, record, parsed, score in zip(
            examples, records, scores.parsed, scores.correct, strict=True
        )
    ]
    return kept.finish(samples, scores.totals, scores.parts)
