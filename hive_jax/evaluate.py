"""Scores a run on benchmarks.

    python -m hive_jax.evaluate --init workdir/vlm2 --task mme,gqa --data benchmarks

Run it again after an interruption and it goes on where it stopped.
"""

import argparse
import os
import sys

from hive_jax.console import report_errors
from hive_jax.evaluation.evaluating import evaluate, table
from hive_jax.evaluation.tasks import TASKS
from hive_jax.training import runtime


@report_errors
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m hive_jax.evaluate",
    )
    parser.add_argument("--init", required=True, help="workdir of a run")
    parser.add_argument(
        "--task", required=True, help=f"some of {','.join(TASKS)}, or all"
    )
    parser.add_argument("--data", required=True, help="has a folder for each task")
    parser.add_argument("--out", help="default: evaluation/ in the run's workdir")
    parser.add_argument(
        "--prompt",
        default="",
        help="lmms_eval or tabletop; default: the one of the run's data",
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, help="default: the task's")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    runtime.enable_compilation_cache()
    present = [name for name in TASKS if os.path.isdir(os.path.join(args.data, name))]
    results = evaluate(
        args.init,
        (present if args.task == "all" else None) or args.task.split(","),
        args.data,
        args.out or os.path.join(args.init, "evaluation"),
        variant=args.prompt,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
