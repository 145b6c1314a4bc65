"""Draws a contact sheet of the built-in world: pictures, captions and questions.

python tools/show_data.py --out contact_sheet.png --split train --text captions
"""

import argparse
import pathlib
import re
import sys

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from hive_jax.data.tabletop import Tabletop
from hive_jax.data.tabletop.language import MODES
from hive_jax.data.tabletop.questions import questions
from hive_jax.data.tabletop.scene import SPLITS, scene

PAPER, CARD, INK, SOFT = "#f3f1ec", "#ffffff", "#222222", "#85807a"
ACCENT = "#1f5fa8"
MARGIN, PADDING, LEADING = 28, 14, 19


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="contact_sheet.png", help="the PNG to write")
    parser.add_argument("--split", default="train", choices=list(SPLITS))
    parser.add_argument("--text", default="captions", choices=MODES)
    parser.add_argument("--size", type=int, default=192, help="image size in pixels")
    parser.add_argument("--start", type=int, default=0, help="first index")
    parser.add_argument("--count", type=int, default=12, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Breaks text into lines of at most `width` pixels."""
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
    """The text under a picture as (gap above, line, font, colour)."""
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
    """Whole-number magnification, so that small pictures show their pixels."""
    times = max(1, width // image.shape[1])
    side = image.shape[1] * times
    return Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)


def contact_sheet(source: Tabletop, start: int, count: int) -> Image.Image:
    """Cards of `count` scenes in four columns, each row as tall as its longest."""
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
    """One scene: the picture, then its index, caption, questions and answers."""
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


def main() -> None:
    arguments = parse_arguments()
    source = Tabletop(
        arguments.split,
        seed=arguments.seed,
        image_size=arguments.size,
        text=arguments.text,
    )
    contact_sheet(source, arguments.start, arguments.count).save(arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
