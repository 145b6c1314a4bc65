"""A page of HTML that needs no other file: text, tables, pictures."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

# In the page, which has to be readable as a single file, offline, in light and dark.
_STYLE = """
:root { --ink: #1d2530; --pale: #5b6675; --line: #d8dde4; --back: #f6f7f9;
  --card: #ffffff; --mark: #1f6f8b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --pale: #9aa5b4;
  --line: #323a46; --back: #14181e; --card: #1c222a; --mark: #6cc0dc; } }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--back);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 46rem; } .pale { color: var(--pale); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
nav a { color: var(--mark); text-decoration: none; white-space: nowrap; }
.wide { overflow-x: auto; margin: .6rem 0 1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; } th { color: var(--pale); font-weight: 600; }
.text { text-align: left; } td.text { min-width: 9rem; }
figure { margin: .8rem 0; background: #fff; border: 1px solid var(--line);
  border-radius: 8px; padding: .5rem; overflow-x: auto; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figure.large img { min-width: 640px; }
figcaption { color: #5b6675; font-size: .82rem; padding: .3rem .2rem 0; }
img.scene { width: 84px; height: 84px; border-radius: 6px; image-rendering: pixelated; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--mark); }
"""


def page(title: str, about: str, sections: Sequence[tuple[str, str]]) -> str:
    """Returns a whole HTML document with a table of contents.

    Args:
      title: as text, not HTML.
      about: paragraph under the title, as text.
      sections: (heading, HTML) pairs; those with empty HTML are left out.
    """
    # Numbered after empty ones are removed: the anchors of the links are these numbers.
    sections = [(heading, body) for heading, body in sections if body]
    links = "".join(
        f'<a href="#s{number}">{text(heading)}</a>'
        for number, (heading, _) in enumerate(sections)
    )
    bodies = "".join(
        f'<section id="s{number}"><h2>{text(heading)}</h2>{body}</section>\n'
        for number, (heading, body) in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n"
        f'<body><main><h1>{text(title)}</h1><p class="pale">{text(about)}</p>'
        f"<nav>{links}</nav>\n{bodies}</main></body></html>\n"
    )


def text(value) -> str:
    return html.escape(str(value))


def paragraph(value: str) -> str:
    return f"<p>{text(value)}</p>"


def heading(value: str) -> str:
    return f"<h3>{text(value)}</h3>"


def table(header: Sequence[str], rows: Sequence[Sequence], words: bool = False) -> str:
    """Returns an HTML table that scrolls where it is too wide; empty without rows.

    Args:
      header: a cell for each column.
      rows: cells, as text or, with `Raw`, as HTML.
      words: align the cells left, as prose, rather than as numbers.
    """
    if not rows:
        return ""
    kind = ' class="text"' if words else ""
    head = "".join(f"<th{kind}>{text(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(_cell(cell, kind) for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def picture(path: Path, caption: str, large: bool = False) -> str:
    """Embeds a PNG file in the page, with a caption.

    Args:
      path: of the file.
      caption: as text; also the alternative text.
      large: scroll the image on a narrow screen rather than shrink it.
    """
    kind = ' class="large"' if large else ""
    return (
        f'<figure{kind}><img alt="{text(caption)}" src="{_embedded(path.read_bytes())}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


class Raw(str):
    """HTML that is inserted in a cell unescaped."""

    __slots__ = ()


def scene(png: bytes, alt: str) -> Raw:
    """Returns a small image for a table cell.

    Args:
      png: content of a PNG file.
      alt: alternative text.
    """
    return Raw(f'<img class="scene" alt="{text(alt)}" src="{_embedded(png)}">')


def folded(title: str, body: str) -> str:
    """Returns a collapsed section; empty without a body.

    Args:
      title: as text; shown while collapsed.
      body: HTML.
    """
    return f"<details><summary>{text(title)}</summary>{body}</details>" if body else ""


def _cell(value, kind: str) -> str:
    # All other values are escaped: names and outputs come from data.
    if isinstance(value, Raw):
        return f"<td>{value}</td>"
    return f"<td{kind}>{text(value)}</td>"


def _embedded(png: bytes) -> str:
    # A data URL: the page needs no file beside it.
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
