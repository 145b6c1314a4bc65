"""Damages one file of a checkpoint at a time; no restored value may be wrong."""

import random
import re
from collections import Counter
from pathlib import Path

from tools.fault_suite import stored_bits
from tools.fault_suite.figure import Figure, format_counts

# The message about the step that is passed over names leaves or items.
_NAMED = re.compile(
    r"checkpoint (\d+) is damaged: .*\b(params|optimizer|opt_state|step|meta)\b"
)


_LEAF = re.compile(r"damaged: (wrong values in )?(params/|opt_state/|step\b)")


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Damages files of the newest of three steps in turn, and restores.

    Args:
      count: damages; each is undone before the next.
      folder: for the workdir.
      cache: not used; nothing is trained.
    """
    workdir = folder / "run"
    stored_bits.save_random(workdir, 3)
    abstract = stored_bits.abstract_leaves(workdir)
    bits = stored_bits.bits_of_steps(workdir, abstract)
    newest = workdir / "checkpoints" / str(max(bits))
    files = sorted((path for path in newest.rglob("*") if path.is_file()), key=str)
    draw, outcomes, failures, leaves = random.Random(0), Counter(), [], 0
    for number in range(count):
        path = files[number % len(files)]
        content = path.read_bytes()
        # Another kind for the same file in each round over all files.
        kinds = list(_KINDS)
        kind = kinds[(number // len(files) + number) % len(kinds)]
        older = workdir / "checkpoints" / str(max(bits) - 1) / path.relative_to(newest)
        damaged = _KINDS[kind](
            content, draw, older.read_bytes() if older.exists() else b""
        )
        path.unlink() if damaged is None else path.write_bytes(damaged)
        restored = stored_bits.restore(workdir, abstract)
        path.write_bytes(content)
        outcome = _outcome(restored, bits)
        outcomes[outcome] += 1
        leaves += bool(_LEAF.search(restored.warnings))
        if outcome not in ("verified equal", "older step used"):
            case = f"{path.relative_to(newest)}, {kind}"
            failures.append(f"{case}: {outcome} {restored.error}")
    seen = (
        f"{len(files)} files; {format_counts(outcomes)}, {leaves} with the leaf named, the "
        f"others with the item; {outcomes['silently wrong']} silently wrong"
    )
    return Figure(count, seen, failures)


def _outcome(restored: stored_bits.Restored, bits: dict[int, str]) -> str:
    """Classifies what came of a damage."""
    if restored.error:
        return "refused" if restored.is_refusal else "exception"
    if restored.step is None:
        return "taken for a new run"
    if restored.bits != bits[restored.step]:
        return "silently wrong"
    if restored.step == max(bits):
        return "verified equal"
    named = _NAMED.search(restored.warnings)
    if named and int(named[1]) == max(bits):
        return "older step used"
    return "older step used without a message"


def flip_bit(content: bytes, draw: random.Random) -> bytes:
    """Returns the bytes with one bit changed; empty ones get a byte."""
    if not content:
        return b"\1"
    changed = bytearray(content)
    position = draw.randrange(8 * len(content))
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


def _overwrite(content: bytes, draw: random.Random, older: bytes) -> bytes:
    """Overwrites up to 64 bytes."""
    at = draw.randrange(len(content) + 1)
    noise = draw.randbytes(min(64, len(content) - at) or 1)
    return content[:at] + noise + content[at + len(noise) :]


# Kind -> function (content, draw, content of the same file in the older step) of the
# damaged content; None for a missing file.
_KINDS = {
    "flipped bit": lambda content, draw, older: flip_bit(content, draw),
    "cut": lambda content, draw, older: content[: draw.randrange(len(content) or 1)],
    "missing": lambda content, draw, older: None,
    "overwritten": _overwrite,
    "zeros": lambda content, draw, older: bytes(len(content)),
    "of an older step": lambda content, draw, older: older,
    "longer": lambda content, draw, older: content + draw.randbytes(10),
    "second flipped bit": lambda content, draw, older: flip_bit(content, draw),
}
