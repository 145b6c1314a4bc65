"""Console entry point: `hive_jax COMMAND ...` is `python -m hive_jax.COMMAND ...`."""

import runpy
import sys

COMMANDS = {
    "train": "train one stage from a config",
    "evaluate": "score a run on MME, GQA, OK-VQA, ScienceQA, POPE or TextVQA",
    "probe": "train probes on frozen features; zero-shot classification, retrieval",
    "compare": "compare evaluations or runs side by side",
    "chat": "ask a run about an image",
    "plan": "memory, communication and hours of a run on hardware you do not have",
    "visualize": "draw attention maps, gradients and features of a run",
    "export_hf": "export a component of a run to Hugging Face or big_vision format",
    "import_weights": "import pre-trained weights as the start of a run",
    "make_tokenizer": "train a tokenizer on the texts of a dataset",
    "prepare_data": "check a dataset, or convert it to ArrayRecord",
}


def main() -> None:
    """Runs the command named by the first argument."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        width = max(map(len, COMMANDS))
        lines = [
            f"  {command:<{width}}  {about}" for command, about in COMMANDS.items()
        ]
        usage = "\n".join(["usage: hive_jax COMMAND [arguments]", "", *lines])
        wants_help = name in ("-h", "--help")
        error = "" if wants_help else f"error: {name!r} is not a command\n"
        print(error + usage, file=sys.stdout if wants_help else sys.stderr)
        sys.exit(0 if wants_help else 64)
    sys.argv = [f"hive_jax {name}", *sys.argv[2:]]
    runpy.run_module(f"hive_jax.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
