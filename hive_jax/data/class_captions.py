"""Captions of images of which only the class is known."""

import re

CAPTION = "a photo of a {}"

# Names that start with a vowel's sound: by spelling, but for "unicorn", "European", "one"
# and "ukulele", and with a silent h or a number that is spoken so.
_VOWEL = re.compile(
    r"(?!uni[cfqtv]|eu|ewe|one\b|once|uk)[aeiou]|hour|heir|hono|8|1[18]\b",
    re.IGNORECASE,
)
# Plurals and collections: "french fries", "Animals & Nature".
_NO_ARTICLE = re.compile(r"[a-z](?<![sui])s$|&| and ", re.IGNORECASE)


def class_caption(name: str) -> str:
    """Returns the caption of a class: "a photo of an owl"."""
    return fill_template(CAPTION, name)


def fill_template(template: str, name: str) -> str:
    """Returns a template with the name of a class for each {}.

    Args:
      template: a text with {}. "a {}" is the name with its article: "an owl", and plurals
        and collections have none, as "french fries" and "Animals & Nature".
      name: of the class; underscores stand for spaces.
    """
    name = name.replace("_", " ")
    if _NO_ARTICLE.search(name):
        article = ""
    else:
        article = "an " if _VOWEL.match(name) else "a "
    return re.sub(
        r"(\ba )?\{\}", lambda match: (article if match[1] else "") + name, template
    )
