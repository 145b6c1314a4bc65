"""The programs that are compared, and the jobs that make processes of them."""

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from hive_jax.config import to_dict
from hive_jax.models.config import HiveConfig
from tools.benchmark import jax_worker, peer_inputs
from tools.benchmark.cases import Size, case


@dataclasses.dataclass(frozen=True)
class Variant:
    """A program: hive_jax with a fusion, or `peer`, one of torch/peers.py."""

    fusion: str
    peer: str = ""

    @property
    def reference(self) -> str:
        """The variant of hive_jax that computes the same."""
        return {"hive": "hive_jax HIVE", "self_attention": "hive_jax SA"}[self.fusion]

    @property
    def command(self) -> list[str]:
        """Command that starts a worker for a job; see `worker_process.py`."""
        if self.peer:
            script = Path(__file__).parent / "torch/worker.py"
            return [sys.executable, str(script)]
        return [sys.executable, "-m", jax_worker.__name__]


VARIANTS = {
    "hive_jax HIVE": Variant("hive"),
    "torch HIVE": Variant("hive", "hive"),
    "hive_jax SA": Variant("self_attention"),
    "torch SA, tuned": Variant("self_attention", "llava"),
    "torch SA, as shipped": Variant("self_attention", "llava_as_shipped"),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Settings shared by all variants.

    Attributes:
      device: "cpu" or "gpu".
      dtype: "float32" or "bfloat16", of the computation; weights are float32.
      threads: of the CPU, for each variant.
      compile: a mode of torch.compile for the tuned peers, or empty for eager.
      rounds, steps: times that each variant is timed, and its steps each time.
    """

    device: str
    dtype: str
    threads: int
    compile: str
    rounds: int
    steps: int

    def environment(self) -> dict[str, str]:
        """Environment variables of the workers."""
        variables = {
            # Weights are files here; a look at the hub would only take time.
            "HF_HUB_OFFLINE": "1",
            "JAX_PLATFORMS": "cpu" if self.device == "cpu" else "cuda,cpu",
            # The libraries behind torch; JAX follows the CPU affinity that `on_cpus`
            # sets.
            "MKL_NUM_THREADS": str(self.threads),
            "OMP_NUM_THREADS": str(self.threads),
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parent.parent.parent), *_python_path()]
            ),
            "TOKENIZERS_PARALLELISM": "false",
            # Or JAX would take three quarters of a GPU and report that as its peak.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        if self.dtype == "float32":  # and not TF32
            variables["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
        return variables


def _python_path() -> list[str]:
    return [path for path in [os.environ.get("PYTHONPATH")] if path]


def write_inputs(folder: Path, size: Size, names: Iterable[str]) -> None:
    """Writes the weights of each fusion that the variants use, and the common batch.

    Args:
      folder: to create.
      size: towers, text length and batch size.
      names: keys of VARIANTS.
    """
    folder.mkdir()
    for fusion in {VARIANTS[name].fusion for name in names}:
        model = HiveConfig(size.encoder, size.decoder, fusion)
        peer_inputs.write_weights(folder / fusion, model)
    peer_inputs.write_batch(folder / "batch.npz", peer_inputs.random_batch(size))


def make_jobs(
    folder: Path, size: Size, rules: tuple, names: Iterable[str], setting: Setting
) -> dict[str, dict]:
    """Returns variant name -> its job, on the files of `write_inputs`.

    The learning rate is the same in all steps.

    Args:
      rules: of a stage, as in its config file.

    Raises:
      ConfigError: rules that do not fit, or that the peers do not know.
    """
    jobs = {}
    for name in names:
        variant = VARIANTS[name]
        run = case(size, variant.fusion, rules, setting.dtype)
        # The peers have no schedule.
        constant = dataclasses.replace(run.optimizer, min_lr=run.optimizer.peak_lr)
        run = dataclasses.replace(run, optimizer=constant)
        job = {
            "weights": str(folder / variant.fusion),
            "batch": str(folder / "batch.npz"),
        }
        job |= _for_torch(run, variant, setting) if variant.peer else _for_jax(run)
        jobs[name] = job
    return jobs


def _for_jax(run) -> Mapping:
    return {"config": to_dict(run)}


def _for_torch(run, variant: Variant, setting: Setting) -> Mapping:
    # Weight decay is 0 in the paper's stages.
    options = ("peak_lr", "beta1", "beta2", "clip_norm")
    return {
        "peer": variant.peer,
        "multipliers": peer_inputs.multipliers(run),
        "optimizer": {name: getattr(run.optimizer, name) for name in options},
        "device": "cuda" if setting.device == "gpu" else "cpu",
        "dtype": setting.dtype,
        "threads": setting.threads,
        "compile": setting.compile,
    }
