"""Benchmark evaluation of a run: generate answers, resume, score."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from hive_jax.buckets import as_path
from hive_jax.config import nearest
from hive_jax.console import log, progress_bar, text_table
from hive_jax.data.parallel import ordered_map
from hive_jax.data.sources.registry import prompt_style
from hive_jax.data.transforms import decode
from hive_jax.errors import ConfigError
from hive_jax.evaluation.benchmarks.base import Example, Examples, format_prompt
from hive_jax.evaluation.benchmarks.registry import Task, find_task, read_task
from hive_jax.evaluation.results import ResultStore, open_store
from hive_jax.inference.generate import Decoding, Generator, Prompt
from hive_jax.inference.model import TrainedModel, load_run

# Decoding in the background, while the device generates.
_THREADS = 8


def evaluate(
    run: str,
    tasks: Sequence[str],
    data: str,
    out: str,
    *,
    prompt_variant: str = "",
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> dict[str, dict]:
    """Answers benchmark questions with a run and scores the answers.

    Resumes an interrupted evaluation of the same settings, and returns the stored
    result of a finished one.

    Args:
      run: workdir of a run.
      tasks: names in `registry.TASKS`.
      data: folder with a folder for each task.
      out: folder to write: out/TASK/samples.jsonl and result.json.
      prompt_variant: "lmms_eval" or "plain"; empty for the style of the training data.
      batch_size: questions per batch; does not change the answers.
      max_new_tokens: limit of an answer; None for the task's own.
      temperature: see `Decoding`.
      top_p: see `Decoding`.
      seed: see `Decoding`.

    Returns:
      Task -> its result, as in result.json.

    Raises:
      HiveError: invalid arguments, benchmark files or run, before the first question.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected 1 or more")
    # All tasks are read and checked before the model is loaded and the first question.
    benchmarks = {name: (find_task(name), read_task(name, data)) for name in tasks}
    trained = load_run(run)
    variant = prompt_variant or prompt_style(trained.config.data.source)
    for name, (task, _) in benchmarks.items():
        if variant not in task.prompts:
            known = ", ".join(task.prompts)
            raise ConfigError(
                f"prompt_variant is {variant!r}; expected one of {known} for {name}"
                + nearest(variant, task.prompts)
            )
    results = {}
    for name, (task, examples) in benchmarks.items():
        # Each task has a limit of its own, that of lmms-eval.
        limit = task.max_new_tokens if max_new_tokens is None else max_new_tokens
        decoding = Decoding(limit, temperature, top_p, seed, task.stop)
        folder = as_path(out) / name
        settings = _settings(name, task, variant, examples, trained, decoding)
        with open_store(folder, settings) as store:
            if store.result is None:
                _answer(store, trained, task, variant, examples, decoding, batch_size)
                results[name] = _finish(store, task, examples)
            else:
                log(f"{name}: finished already; results in {folder}")
                results[name] = store.result
    return results


def table(results: dict[str, dict]) -> str:
    """Formats scores as a text table with one score per line."""
    rows = [
        (f"{name} {score}", f"{value:.2f}", str(result["counts"][score]))
        for name, result in results.items()
        for score, value in result["scores"].items()
    ]
    return text_table(("task", "score", "questions"), rows)


def _settings(name, task: Task, variant, examples: Examples, trained, decoding) -> dict:
    template = task.prompts[variant]
    config = trained.config
    return {
        "task": name,
        "variant": variant,
        "prompt": template,
        # Short enough to compare by eye.
        "prompt_hash": hashlib.sha256(template.encode()).hexdigest()[:16],
        "n": len(examples),
        # Everything that an answer depends on: a resumed evaluation must not mix two.
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
        "checkpoint": trained.checkpoint,
    }


def _answer(
    store: ResultStore,
    trained: TrainedModel,
    task: Task,
    variant: str,
    examples: Examples,
    decoding: Decoding,
    batch_size: int,
) -> None:
    """Answers all questions without a stored answer."""
    generator = trained.generator(decoding)
    texts = [format_prompt(task.prompts[variant], example) for example in examples]
    # Answers are stored by id, so that they do not depend on the order of batches.
    left = [i for i, example in enumerate(examples) if example.id not in store.answers]
    batches = [*_batches(left, texts, generator, batch_size)]
    preprocessing = trained.config.data.preprocessing

    def load(number: int) -> list[Prompt]:
        return [
            Prompt(
                texts[i],
                _image(examples, examples[i], generator.image_size, preprocessing)
                if generator.sees_images
                else None,
                # The number of the question, which sampling depends on: see
                # `Prompt.number`.
                i,
            )
            for i in batches[number]
        ]

    done = len(examples) - len(left)
    with progress_bar(store.folder.name, len(examples), done) as bar:
        loaded = ordered_map(load, range(len(batches)), _THREADS)
        for indices, prompts in zip(batches, loaded, strict=True):
            # A constant number of rows: the last batch needs no program of its own.
            outputs = generator(prompts, batch_size)
            # After each batch: an interrupted evaluation loses one batch at most.
            store.add(
                {"id": examples[i].id, "prompt": texts[i], "output": output}
                for i, output in zip(indices, outputs, strict=True)
            )
            bar.update(len(indices))


def _batches(
    indices: Sequence[int], texts: Sequence[str], generator: Generator, size: int
) -> Iterator[list[int]]:
    """Yields batches of question indices, bucketed by padded prompt length, so that no
    answer depends on the rest of its batch."""
    by_length = {}
    for i in indices:
        by_length.setdefault(generator.length(Prompt(texts[i])), []).append(i)
    # Short prompts first; one compiled program for each padded length.
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


def _finish(store: ResultStore, task: Task, examples: Examples) -> dict:
    # In the order of the questions, however they were batched.
    records = [store.answers[example.id] for example in examples]
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
    return store.finish(samples, scores.totals, scores.parts, scores.counts)
