"""Scores a run on benchmarks; an interrupted evaluation is resumed."""

import argparse
import os
import sys

from hive_jax.console import report_errors, show
from hive_jax.errors import MissingInputError
from hive_jax.evaluation.benchmarks.registry import TASKS
from hive_jax.io import is_folder, require_path

_EXAMPLES = """examples:
  python -m hive_jax.evaluate --run workdir/vlm2 --task mme,gqa --data benchmarks
  python -m hive_jax.evaluate --run workdir/vlm2 --task all --data benchmarks \\
      --out evaluation --max_new_tokens 16
"""


@report_errors
def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # Here, because importing JAX would delay --help.
    from hive_jax.evaluation.runner import evaluate, table
    from hive_jax.training.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    tasks = (
        _find_tasks(options.data) if options.task == "all" else options.task.split(",")
    )
    results = evaluate(
        options.run,
        tasks,
        options.data,
        options.out or os.path.join(options.run, "evaluation"),
        prompt_variant=options.prompt,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
    )
    show(table(results))
    return 0


def _find_tasks(data: str) -> list[str]:
    """Returns the tasks that have a folder in `data`."""
    require_path(data, "data")
    tasks = [task for task in TASKS if is_folder(os.path.join(data, task))]
    if not tasks:
        raise MissingInputError(
            f"{data} has no folder of a task; expected one or more of {', '.join(TASKS)}"
        )
    return tasks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hive_jax.evaluate",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", required=True, metavar="PATH", help="workdir of a run")
    add("--task", required=True, help=f"some of {','.join(TASKS)}, or all")
    add("--data", required=True, help="folder with a folder for each task")
    add("--out", help="folder to write (default: evaluation/ in the workdir)")
    add(
        "--prompt",
        default="",
        help="lmms_eval or plain (default: the style of the training data)",
    )
    add("--batch_size", type=int, default=32, help="questions a batch (default: 32)")
    add("--max_new_tokens", type=int, help="limit of an answer (default: the task's)")
    add("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    add("--top_p", type=float, default=1.0, help="of nucleus sampling (default: 1)")
    add("--seed", type=int, default=0, help="of sampling (default: 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
