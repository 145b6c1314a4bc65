"""Text that somebody else has written."""


class Broken(str):
    """What is wrong with a record, in its place."""


def is_utf8(text: str) -> bool:
    """Whether it has no half of a character, as "\\ud800" of JSON is one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
