"""Names, weights and JSON files as an attacker would write them."""

import json
import os
import pathlib
import socket
import zipfile
from pathlib import Path

import numpy as np

from hive_jax.models.config import SiglipConfig
from hive_jax.weights import hf_models
from hive_jax.weights.mapping import param_shapes

SECRET = b"secret"
LINKS = ("link/secret.txt", "link.txt", "folder-link/../../secret.txt")
# Names that lead out of a folder of images, or nowhere.
HOSTILE = (
    "../secret.txt",
    "a/../../secret.txt",
    "a/../a/../../secret.txt",
    "./../secret.txt",
    "..",
    "../",
    "a/..",
    "/etc/passwd",
    "//etc/passwd",
    "/",
    "~/secret.txt",
    "~root/x",
    "..\\secret.txt",
    "a\\..\\..\\secret.txt",
    "\\\\host\\share\\x",
    "\\\\?\\C:\\x",
    "C:\\x",
    "C:/x",
    "c:x",
    "file:///etc/passwd",
    "http://169.254.169.254/latest",
    "https://example.com/a.jpg",
    "gs://bucket/a.jpg",
    "s3://bucket/a.jpg",
    "ftp://host/a",
    "data:image/png;base64,AAAA",
    "a\0.jpg",
    "\0",
    "a.jpg\0../secret.txt",
    "",
    "a" * 1025,
    "a/" * 600,
    "/dev/zero",
    "/dev/random",
    "/dev/stdin",
    "/proc/self/environ",
    "/proc/self/mem",
    *LINKS,
)
# Of what is below the folder, what is not an image file.
IRREGULAR = ("pipe", "folder", "zero", "zero-link/zero", "socket", "loop", "a.jpg/b")
MISSING = (
    "missing.jpg",
    "a.jpg ",
    "A.JPG",
    " a.jpg",
    "folder/missing.jpg",
    "a" * 300,
    "é.jpg",
    "%2e%2e/secret.txt",
    "..%2fsecret.txt",
    "....//secret.txt",
    "．．/secret.txt",
    ". ./secret.txt",
    "$HOME/secret.txt",
    "`id`",
    "*",
    "\udcff.jpg",
    "\ud800.jpg",
)
# Clears the screen, sets the title, rings, shows text backwards, ends no line.
ESCAPES = "\x1b]0;pwn\x07\x1b[2J\x9b2J\x7f\r\x00\x85\u202egpj.exe\u2066\u2028\ud800.jpg"
DEEP = "[" * 100_000
_ENCODER = SiglipConfig(24, 2, 40, 2, patch_size=4, image_size=8)


def write_images(folder: Path) -> tuple[Path, Path]:
    """Writes a secret, and beside it images in a folder and in a zip that point at it.

    Args:
      folder: to write to.

    Returns:
      The folder of the images, and the zip.
    """
    root, archive = folder / "images", folder / "images.zip"
    (root / "folder").mkdir(parents=True)
    (folder / "secret.txt").write_bytes(SECRET)
    (root / "a.jpg").write_bytes(b"image")
    (root / "inside.jpg").symlink_to("folder/b.jpg")
    (root / "folder/b.jpg").write_bytes(b"other")
    (root / "link").symlink_to(folder)
    (root / "link.txt").symlink_to("../secret.txt")
    (root / "folder-link").symlink_to("folder")
    (root / "zero").symlink_to("/dev/zero")
    (root / "zero-link").symlink_to("/dev")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        # The path of a socket is short: relative to the folder, by its descriptor.
        descriptor = os.open(root, os.O_RDONLY)
        one.bind(f"/proc/self/fd/{descriptor}/socket")
        os.close(descriptor)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.jpg", b"image")
        out.writestr("folder/b.jpg", b"other")
        out.writestr("../secret.txt", SECRET)
        out.writestr("/etc/passwd", SECRET)
    return root, archive


def write_encoder(path: Path) -> dict:
    """Writes a good encoder folder with random weights; returns its config.json."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in param_shapes(_ENCODER).items()
    }
    layout = hf_models.encoder(_ENCODER)
    hf_models.write(path, layout, arrays, np.dtype(np.float32))
    return json.loads((path / "config.json").read_text())


def write_code(folder: Path) -> None:
    """Writes weights whose configuration points at code beside it, and pickled objects.

    `trusting` is loaded without its code; `unknown`, `model.npz` and `model.bin` must be
    refused.

    Args:
      folder: to write to.
    """
    for name in ("trusting", "unknown"):
        path = folder / name
        config = write_encoder(path)
        (path / "hostile.py").write_text("open(__file__ + '.was_here', 'w').close()")
        config["auto_map"] = dict.fromkeys(
            ("AutoConfig", "AutoModel", "AutoImageProcessor"), "hostile.Hostile"
        )
        config["trust_remote_code"] = True
        config["_attn_implementation_internal"] = "hostile/kernel"
        (path / "config.json").write_text(json.dumps(config))
        (path / "pytorch_model.bin").write_bytes(b"\x80\x02chostile\nHostile\n.")
    config["model_type"] = "hostile"
    (path / "config.json").write_text(json.dumps(config))
    (folder / "model.bin").write_bytes(b"\x80\x02chostile\nHostile\n.")
    objects = np.array([pathlib.PurePath("object")], dtype=object)
    np.savez(folder / "model.npz", **{"img/embedding/kernel": objects})
