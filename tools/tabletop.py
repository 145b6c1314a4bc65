"""The built-in world: its tokenizer, its benchmarks, and a preview of its scenes.

python tools/tabletop.py tokenizer --out hive_jax/assets/tokenizer.json
python tools/tabletop.py benchmarks --out benchmarks
python tools/tabletop.py preview --out contact_sheet.png --text captions
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from hive_jax.console import report_errors, show
from hive_jax.data.tabletop import Tabletop
from hive_jax.data.tabletop.benchmarks import write_benchmarks
from hive_jax.data.tabletop.language import MODES
from hive_jax.data.tabletop.questions import questions
from hive_jax.data.tabletop.scene import SPLITS, scene
from hive_jax.data.train_tokenizer import train_tokenizer
from hive_jax.errors import ConfigError
from hive_jax.evaluation.benchmarks.registry import read_task
from hive_jax.io import atomic_write

PAPER, CARD, INK, SOFT = "#f3f1ec", "#ffffff", "#222222", "#85807a"
ACCENT = "#1f5fa8"
MARGIN, PADDING, LEADING = 28, 14, 19


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Breaks text into lines of at most `width` pixels.

    Args:
      text: words are kept whole, so one that is wider has a line of its own.
      font: to measure with.
      width: in pixels.
    """
    lines = [""]
    # An option's letter stays with its option.
    for word in re.split(r"(?<!\)) |\n", text.strip()):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def lines_beneath(sample, asked, width: int, fonts) -> list[tuple]:
    """Returns the text under a picture as (gap above, line, font, colour).

    Args:
      sample: of the scene, with its caption.
      asked: questions about it.
      width: of a line, in pixels.
      fonts: "text" for the caption, "small" for questions.
    """
    lines = []
    for segment in sample.segments:
        for line in wrap(segment.text, fonts["text"], width):
            lines.append((0, line, fonts["text"], INK))
    for question in asked:
        for i, line in enumerate(wrap(question.prompt, fonts["small"], width)):
            lines.append((0 if i else 7, line, fonts["small"], SOFT))
        lines.append((0, question.answer, fonts["small"], ACCENT))
    return lines


def enlarge(image, width: int) -> Image.Image:
    """Magnifies by a whole number, so that small pictures show their pixels.

    Args:
      image: uint8[size, size, 3].
      width: largest width of the result, in pixels; never below that of `image`.
    """
    times = max(1, width // image.shape[1])
    side = image.shape[1] * times
    return Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)


def contact_sheet(source: Tabletop, start: int, count: int) -> Image.Image:
    """Draws scenes in four columns, each row as tall as its tallest card.

    Args:
      source: the dataset.
      start: index of the first scene.
      count: number of scenes; fewer at the end of the split.
    """
    fonts = {
        "title": ImageFont.load_default(size=22),
        "text": ImageFont.load_default(size=15),
        "small": ImageFont.load_default(size=13),
    }
    indices = range(start, min(start + count, len(source)))
    cards = []
    for index in indices:
        sample = source[index]
        picture = enlarge(sample.image, max(256, source.image_size))
        asked = questions(scene(source.split, source.seed, index))
        # A different three for each scene, so that a sheet shows every kind.
        asked = [asked[(index + 2 * i) % len(asked)] for i in range(3)]
        lines = lines_beneath(sample, asked, picture.width, fonts)
        cards.append((f"#{index}", picture, lines))
    columns = min(4, len(cards))
    rows = [cards[i : i + columns] for i in range(0, len(cards), columns)]
    width = cards[0][1].width + 2 * PADDING
    heights = [max(card_height(card) for card in row) for row in rows]
    sheet = Image.new(
        "RGB",
        (
            MARGIN + columns * (width + MARGIN),
            2 * MARGIN + 26 + sum(heights) + MARGIN * len(rows),
        ),
        PAPER,
    )
    pen = ImageDraw.Draw(sheet)
    title = f"tabletop   {source.split}   {source.text}   {source.image_size} px"
    pen.text((MARGIN, MARGIN), title, INK, fonts["title"])
    top = 2 * MARGIN + 26
    for row, height in zip(rows, heights):
        for column, card in enumerate(row):
            left = MARGIN + column * (width + MARGIN)
            draw_card(sheet, card, (left, top, width, height), fonts)
        top += height + MARGIN
    return sheet


def card_height(card) -> int:
    _, picture, lines = card
    text = sum(gap + LEADING for gap, *_ in lines)
    return picture.height + text + LEADING + 3 * PADDING


def draw_card(sheet: Image.Image, card, box, fonts) -> None:
    """Draws one scene: the picture, then its index, caption, questions and answers.

    Args:
      sheet: drawn on.
      card: (name, picture, lines), the lines as from `lines_beneath`.
      box: (left, top, width, height), in pixels.
      fonts: "small" is that of the name.
    """
    name, picture, lines = card
    left, top, width, height = box
    pen = ImageDraw.Draw(sheet)
    pen.rounded_rectangle((left, top, left + width, top + height), 8, fill=CARD)
    sheet.paste(picture, (left + PADDING, top + PADDING))
    y = top + picture.height + 2 * PADDING - 4
    pen.text((left + PADDING, y), name, SOFT, fonts["small"])
    y += LEADING
    for gap, line, font, colour in lines:
        y += gap
        pen.text((left + PADDING, y), line, colour, font)
        y += LEADING


def make_tokenizer(args: argparse.Namespace) -> None:
    """Trains the byte-level BPE of 512 tokens that the package ships.

    Any text can be written with it; the words of tabletop are single tokens."""
    tokenizer = train_tokenizer(tokenizer_texts(), vocab_size=512)
    with atomic_write(args.out) as path:
        tokenizer.save(str(path))
    show(f"{args.out}: {tokenizer.get_vocab_size()} tokens")


def tokenizer_texts() -> Iterator[str]:
    """Yields every kind of text of 5000 scenes."""
    for mode in ("captions", "vague", "questions"):
        source = Tabletop("train", text=mode, with_image=False)
        for index in range(5000):
            yield "".join(segment.text for segment in source[index].segments)


def make_benchmarks(args: argparse.Namespace) -> None:
    """Writes MME, GQA, OK-VQA and ScienceQA of tabletop, in their own formats."""
    write_benchmarks(args.out, args.count, args.seed, args.size)
    for folder in sorted(Path(args.out).iterdir()):
        examples = read_task(folder.name, args.out)  # as an evaluation will
        images = {e.image for e in examples if e.image is not None}
        show(f"{folder}: {len(examples)} questions, {len(images)} images")


def preview(args: argparse.Namespace) -> None:
    """Draws a contact sheet of scenes with their texts and some questions."""
    source = Tabletop(args.split, seed=args.seed, image_size=args.size, text=args.text)
    if args.count < 1 or not 0 <= args.start < len(source):
        raise ConfigError(
            f"--start is {args.start} and --count {args.count}; expected a start of 0 to "
            f"{len(source) - 1} and a count of 1 or more"
        )
    with atomic_write(args.out) as path:
        contact_sheet(source, args.start, args.count).save(path, "PNG")
    show(f"wrote {args.out}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run, out: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=run.__doc__.splitlines()[0],
            description=run.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.set_defaults(run=run)
        command.add_argument("--out", required=True, help=out)
        return command

    add("tokenizer", make_tokenizer, "the tokenizer.json to write")
    benchmarks = add("benchmarks", make_benchmarks, "a new folder")
    benchmarks.add_argument("--count", type=int, default=350, help="images of each")
    benchmarks.add_argument("--size", type=int, default=64, help="image size in pixels")
    sheet = add("preview", preview, "the PNG to write")
    sheet.add_argument("--split", default="train", choices=list(SPLITS), help="split")
    sheet.add_argument("--text", default="captions", choices=MODES, help="kind of text")
    sheet.add_argument("--size", type=int, default=192, help="image size in pixels")
    sheet.add_argument("--start", type=int, default=0, help="first scene")
    sheet.add_argument("--count", type=int, default=12, help="number of scenes")
    for command in (benchmarks, sheet):
        command.add_argument("--seed", type=int, default=0, help="of the scenes")
    return parser.parse_args(arguments)


@report_errors
def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
