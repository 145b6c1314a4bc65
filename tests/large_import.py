"""Imports a large decoder in a fresh process, and prints what that takes.

    python tests/large_import.py --gigabytes 2

Writes a folder as transformers does, a Gemma 3 in bfloat16 and in shards, and removes
it at the end. The result is float32, so twice the files. File pages are the system's
cache of the files, which gives way to others.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from hive_jax.io import write_json
from hive_jax.models.config import DecoderConfig
from hive_jax.weights import hf_models, load_decoder, safetensors
from hive_jax.weights.mapping import param_shapes, tensor_shapes, tensor_slices

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SHARD_BYTES = 500_000_000


def decoder(gigabytes: float) -> DecoderConfig:
    """As deep as the files shall be large, of layers of 63 million parameters."""
    config = DecoderConfig(
        vocab_size=65_536,
        width=2048,
        mlp_dim=8192,
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
        post_norms=True,
        qk_norm=True,
        local_layers=5,
        window=1024,
        rope_base=1e6,
    )
    embedding, layer = 2 * 65_536 * 2048, 2 * 63_000_000
    depth = round((gigabytes * 1e9 - embedding) / layer)
    return DecoderConfig(**{**vars(config), "depth": max(1, depth)})


def write(folder: Path, config: DecoderConfig) -> int:
    """Writes the folder; returns the bytes of its largest tensor."""
    layout = hf_models.decoder(config)
    shapes = tensor_shapes(tensor_slices(layout.rows, param_shapes(config)))
    noise = np.random.default_rng(0).normal(size=1_000_003).astype(BFLOAT16)
    make = {
        name: lambda shape=shape: np.resize(noise, shape)
        for name, shape in shapes.items()
    }
    safetensors.write_tensors(folder, make, shapes, BFLOAT16, SHARD_BYTES)
    write_json(folder / "config.json", layout.config)
    return max(int(np.prod(shape)) for shape in shapes.values()) * BFLOAT16.itemsize


def memory() -> dict[str, int]:
    """Bytes, by the kernel's names."""
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split(":") for line in lines if line.startswith(("VmHWM", "Rss")))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def load(folder: str) -> None:
    """What the fresh process does."""
    import jax

    before, own, done = memory(), [0], threading.Event()

    def watch():
        while not done.wait(0.02):
            own.append(memory()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    _, params = load_decoder(folder)
    seconds = time.monotonic() - start
    done.set()
    watcher.join()
    leaves = jax.tree.leaves(params)
    print(f"seconds: {seconds:.1f}")
    print(f"result, float32: {sum(leaf.nbytes for leaf in leaves) / 1e9:.2f} GB")
    print(f"largest array of it: {max(leaf.nbytes for leaf in leaves) / 1e9:.2f} GB")
    print(f"memory before: {before['VmHWM'] / 1e9:.2f} GB")
    print(f"peak memory, without file pages: {max(own) / 1e9:.2f} GB")
    print(f"peak memory, with them: {memory()['VmHWM'] / 1e9:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        load(args.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        largest = write(folder, decoder(args.gigabytes))
        files = [file.stat().st_size for file in folder.glob("*.safetensors")]
        print(f"files: {len(files)}, {sum(files) / 1e9:.2f} GB", flush=True)
        print(f"largest tensor in them: {largest / 1e9:.2f} GB", flush=True)
        subprocess.run([sys.executable, __file__, "--folder", name], check=True)


if __name__ == "__main__":
    main()
