"""A figure of the fault suite: how often a fault was caused, and what came of it."""

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass
class Figure:
    """Result of one subcommand.

    Attributes:
      cases: faults that were caused.
      seen: what came of them, in words and numbers.
      failures: a line for each case that missed the goal.
      skipped: why nothing was measured; empty if it was.
      seconds: duration; set by the command.
    """

    cases: int
    seen: str
    failures: list[str] = dataclasses.field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether all cases met the goal, and there was one."""
        return not self.failures and self.cases > 0


def markdown_table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Returns a table in Markdown.

    Args:
      header: titles of the columns.
      rows: cells of each row, formatted by str().
    """
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def format_counts(counts: Mapping) -> str:
    """Formats name -> number as text: "3 in a save, 2 elsewhere"."""
    return ", ".join(f"{number:,} {name}" for name, number in counts.items())
