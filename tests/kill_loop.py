"""Kills a training run again and again, and compares its end with an undisturbed run's.

    python tests/kill_loop.py --kills 20
    python tests/kill_loop.py --workdir s3://bucket/run  # the undisturbed one is local

Half of the kills wait for a checkpoint that is being written, the others come at
random moments. Prints what was killed where, and whether all bits agree.
"""

import argparse
import importlib.metadata
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Compiling is all the time that a tiny step takes; this makes it much shorter.
FAST_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# The newer emitters take almost twice as long; JAX 0.12 has no others.
if importlib.metadata.version("jaxlib").startswith(("0.10.", "0.11.")):
    FAST_COMPILATION += " --xla_cpu_use_fusion_emitters=false"

# The smallest model that the built-in tokenizer allows, on 16-pixel scenes: changes to
# named sizes, which are arguments of the config file.
TOWERS = "encoder=tiny/8-16,decoder=tiny"
MICRO = (
    "--config.model.encoder.width=16",
    "--config.model.encoder.depth=2",
    "--config.model.encoder.mlp_dim=32",
    "--config.model.decoder.width=16",
    "--config.model.decoder.depth=2",
    "--config.model.decoder.mlp_dim=32",
    "--config.model.num_connections=2",
    "--config.init_encoder=",
    "--config.init_decoder=",
    "--config.data.tokenizer=builtin:tabletop",
    "--config.data.num_tokens=24",
    "--config.data.validation_size=8",
    "--config.batch_size=8",
)


def command(config: str, workdir: Path | str, *overrides: str) -> list[str]:
    """The training command of a config file on the micro model."""
    config = f"configs/{config}{',' if ':' in config else ':'}{TOWERS}"
    train = [sys.executable, "-m", "hive_jax.train", "--config", config]
    return [*train, "--workdir", str(workdir), *MICRO, *overrides]


def start(arguments: list[str], cache: Path) -> subprocess.Popen:
    """Starts a command; compiled programs are kept in `cache` for the next start."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FAST_COMPILATION,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcome(workdir) -> dict:
    """What must be equal: the final losses, and the fingerprint of every leaf."""
    from hive_jax.buckets import as_path
    from hive_jax.training.checkpointing.manager import Checkpoints

    with Checkpoints(str(workdir), read_only=True) as checkpoints:
        meta = checkpoints.read_meta()
    return {
        "result": json.loads((as_path(workdir) / "result.json").read_text()),
        "fingerprints": meta["fingerprints"],
        "losses": losses(as_path(workdir)),
    }


def losses(workdir) -> dict[int, float]:
    """step -> training loss, from metrics.jsonl; each step must be there once."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "train/loss" in row]
    by_step = {row["step"]: row["train/loss"] for row in rows}
    assert len(by_step) == len(rows), "a step was logged twice"
    return by_step


def unfinished_saves(workdir) -> list[str]:
    from hive_jax.buckets import list_names

    folder = workdir / "checkpoints"
    if isinstance(workdir, Path):
        return [p.name for p in folder.glob("*.orbax-checkpoint-tmp*")]
    steps = list_names(folder)
    return [step for step in steps if not (folder / step / "meta.json").exists()]


def kill_once(process, workdir, in_save: bool, seconds: float) -> str:
    """Sends SIGKILL in a save, or after `seconds`; returns where it hit."""
    began = time.monotonic()
    old = set(unfinished_saves(workdir))
    while process.poll() is None:
        if in_save and set(unfinished_saves(workdir)) - old:
            break
        if not in_save and time.monotonic() - began > seconds:
            break
        time.sleep(0.002)
    process.kill()
    process.communicate()
    if process.returncode == 0:
        return "too late"
    return "in a save" if set(unfinished_saves(workdir)) - old else "elsewhere"


def kill_loop(
    kills: int, folder: Path, total_steps: int, seed: int = 0, url: str = ""
) -> dict:
    """Runs undisturbed, then with `kills` kills; returns counts and both outcomes."""
    from hive_jax.buckets import as_path

    cache = folder / "cache"
    overrides = (
        f"--config.total_steps={total_steps}",
        "--config.checkpoint_every=5",
        "--config.eval_every=20",
        "--config.log_every=1",
        "--config.data.augment=True",
        "--config.data.buckets=(16,)",
        "--config.data.source=tabletop,take=first:400",
    )
    reference, disturbed = folder / "reference", as_path(url or folder / "disturbed")
    finish(start(command("stage1.py", reference, *overrides), cache))
    draw = random.Random(seed)
    where = []
    while len(where) < kills:
        process = start(command("stage1.py", disturbed, *overrides), cache)
        hit = kill_once(process, disturbed, len(where) % 2 == 0, draw.uniform(1, 9))
        if hit == "too late":
            break
        where.append(hit)
    finish(start(command("stage1.py", disturbed, *overrides), cache))
    return {
        "kills": len(where),
        "in a save": where.count("in a save"),
        "reference": outcome(reference),
        "disturbed": outcome(disturbed),
    }


def run(arguments: list[str], cache: Path) -> tuple[int, str]:
    """Runs a command; returns its exit code and what it printed."""
    process = start(arguments, cache)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def finish(process: subprocess.Popen) -> str:
    """Waits for success and returns what was printed."""
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--total_steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", default="", help="of the disturbed run, a URL")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        got = kill_loop(
            args.kills, Path(folder), args.total_steps, args.seed, args.workdir
        )
    same = {k: got["reference"][k] == got["disturbed"][k] for k in got["reference"]}
    print(f"{got['kills']} kills, {got['in a save']} of them in a save")
    print(f"final validation: {got['disturbed']['result']['validation']['loss']}")
    print("bit-equal:", ", ".join(f"{name} {equal}" for name, equal in same.items()))
    sys.exit(0 if all(same.values()) else 1)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
