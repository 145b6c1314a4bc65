"""WebDataset tars, read at random: an image, and a text, a class or a conversation.

0001.jpg 0001.txt    a caption
0001.jpg 0001.cls    a class
0001.jpg 0001.json   conversations, or {"caption": ...} with text=json/caption
"""

import collections
import hashlib

from hive_jax.config import nearest
from hive_jax.data.class_captions import class_caption
from hive_jax.data.invalid import InvalidSample, format_counts
from hive_jax.data.sources.base import MalformedRecord, SourceOptions
from hive_jax.data.sources.classes import (
    note_on_numbers,
    require_distinct,
    sorted_classes,
)
from hive_jax.data.sources.conversations import (
    FORMS,
    IMAGE_KEYS,
    TURN_KEYS,
    parse_record,
)
from hive_jax.data.sources.image_text import (
    NO_IMAGE,
    require_text,
    require_text_or_label,
)
from hive_jax.data.sources.tar_index import expand_shards
from hive_jax.data.sources.tar_members import TarMembers, count_extensions
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import ConfigError, DataError
from hive_jax.json_text import parse_json

_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "jfif", "img", "image")
_JSON = "json"
_MAX_LISTED = 10  # extensions


class WebDatasetSource:
    """Random access to the samples of tars, in the order of the tars.

    Args:
      path: "DIR/{000..099}.tar", "DIR/*.tar", a folder or a tar.
      options: of the run.
      image: extension of the images; empty for any usual one, "none" for texts alone.
      text: extension of the texts, or the key of a JSON member, "json/caption".
      label: extension of the classes, or the key of a JSON member. Without `text` and
        `label`: "txt" or "cls", else the conversations in "json".
      form: of conversations, "plain" (as an empty one) or "chat".

    Raises:
      MissingInputError: a tar is missing.
      ConfigError: `text` and `label` are both given, or `form` without conversations.
      DataError: a tar is damaged, or has no such members, or a class in two spellings.
    """

    tag_names = ()

    def __init__(
        self,
        path: str,
        options: SourceOptions,
        *,
        image: str = "",
        text: str = "",
        label: str = "",
        form: str = "",
    ):
        require_text_or_label(path, text, label)
        self._path, self._with_image = path, options.with_image
        shards = expand_shards(path)
        counts = count_extensions(shards)
        if not counts:
            raise DataError(f"{path} has no samples")
        images = self._choose_images(counts, image)
        field = text or label or self._default_field(counts)
        extension, _, self._key = field.partition("/")
        self._require(counts, extension)
        self._has_images = bool(images)
        self._members = TarMembers(shards, images, extension)
        self._is_class = bool(label) or field == "cls" and not text
        self._form = ""
        if extension == _JSON and not self._key:
            self._form = form or FORMS[0]
            self._check_conversations()
        elif form:
            raise ConfigError(f"wds:{path}: form={form} is for conversations in json")
        self.has_conversations = self._form == "chat"
        unused = {k: n for k, n in counts.items() if k not in (*images, extension)}
        # All read now, for the names of the classes are not known otherwise.
        self._labels = []
        if self._is_class:
            self._labels = [self._label(index) for index in range(len(self))]
        self.classes = tuple(sorted_classes(self._labels))
        require_distinct(path, self.classes)
        remedy = "write names to the tars, or choose a member of names with label="
        self.notes = note_on_numbers(path, self.classes, remedy)
        if unused:
            self.notes += (f"{path}: members not used: {format_counts(unused)}",)
        # Names, sizes and positions: to hash the contents, all tars would be read.
        about = repr((self._members.digest(), field, self._form, self.classes))
        self.fingerprint = hashlib.sha256(about.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; its image is the bytes of a file. Raises InvalidSample."""
        if self._form:
            return self._conversation(index)
        if self._is_class:
            label = require_text(self._labels[index], self.describe(index))
            segments = (Segment(class_caption(label) + "\n"),)
            return Sample(self._image(index), segments, label=label)
        text = require_text(self._text(index), self.describe(index))
        return Sample(self._image(index), (Segment(text + "\n"),))

    def image_name(self, index: int) -> None:
        """None, for each sample has an image of its own; see DataSource."""

    def describe(self, index: int) -> str:
        return self._members.describe(index)

    def _choose_images(self, counts: collections.Counter, image: str) -> list[str]:
        if image == NO_IMAGE:
            return []
        if image:
            self._require(counts, image)
            return [image]
        images = [extension for extension in _IMAGES if extension in counts]
        if not images:
            raise DataError(
                f"{self._path} has {_extensions(counts)}; name the one of the "
                f"images with image=EXTENSION, or read texts alone with image=none"
            )
        return images

    def _default_field(self, counts: collections.Counter) -> str:
        found = [extension for extension in ("txt", "cls") if extension in counts]
        if len(found) > 1:
            raise DataError(
                f"{self._path} has the extensions cls and txt; choose the captions with "
                f"text=txt, or the classes with label=cls"
            )
        if not found and _JSON not in counts:
            raise DataError(
                f"{self._path} has {_extensions(counts)}; expected txt, cls or json: name "
                f"the one of the texts or classes with text=EXTENSION or label=EXTENSION"
            )
        return found[0] if found else _JSON

    def _require(self, counts: collections.Counter, extension: str) -> None:
        if extension not in counts:
            raise DataError(
                f"{self._path} has {_extensions(counts)}; expected {extension}: name "
                f"them with image=, and text= or label="
            )

    def _check_conversations(self) -> None:
        """Checks the form, and the keys of the first record."""
        if self._form not in FORMS:
            raise ConfigError(
                f"config.data.source: form is {self._form!r}; expected one of {FORMS}"
                + nearest(self._form, FORMS)
            )
        # Of the first record alone: to read them all would take hours.
        records = ((i, self._json(i)) for i in range(len(self)))
        index, record = next((x for x in records if isinstance(x[1], dict)), (0, {}))
        if not any(key in record for key in TURN_KEYS):
            raise DataError(
                f"{self.describe(index)}: json has the keys {', '.join(record)}; "
                f"expected conversations or messages, or one of these as text=json/KEY "
                f"or label=json/KEY"
            )

    def _image(self, index: int) -> bytes | None:
        reads = self._with_image and self._has_images
        return self._members.read_image(index) if reads else None

    def _label(self, index: int) -> str:
        text = self._text(index)
        if isinstance(text, MalformedRecord):
            return text
        return text.strip() or MalformedRecord("has no class")

    def _text(self, index: int) -> str:
        """The text or class of a sample, or a MalformedRecord."""
        if not self._key:
            return self._content(index)
        record = self._json(index)
        if isinstance(record, MalformedRecord):
            return record
        value = record.get(self._key) if isinstance(record, dict) else None
        if not isinstance(value, str | int) or isinstance(value, bool):
            return MalformedRecord(f"json has no text or number {self._key}")
        return str(value)

    def _json(self, index: int):
        """The value of a JSON member, or a MalformedRecord."""
        text = self._content(index)
        if isinstance(text, MalformedRecord):
            return text
        try:
            return parse_json(text, _JSON)
        except DataError as error:
            return MalformedRecord(error)

    def _content(self, index: int) -> str:
        """The content of a text member, or a MalformedRecord."""
        try:
            return self._members.read_text(index).decode("utf-8-sig")
        except InvalidSample as invalid:
            return MalformedRecord(invalid.detail)
        except UnicodeDecodeError as error:
            return MalformedRecord(f"its text is not UTF-8: {error}")

    def _conversation(self, index: int) -> Sample:
        record, where = self._json(index), self.describe(index)
        if isinstance(record, dict) and self._members.has_image(index):
            # The image beside the record, however the record calls it.
            others = {k: v for k, v in record.items() if k not in IMAGE_KEYS}
            record = others | {"image": self._members.names[index]}
        conversation = parse_record(record, self._form)
        if isinstance(conversation, MalformedRecord):
            raise InvalidSample("record", where, conversation)
        image = self._image(index) if conversation.image is not None else None
        return Sample(image, conversation.segments(), conversation.image_before)


def _extensions(counts: collections.Counter) -> str:
    """The most frequent extensions, for an error."""
    names = sorted(counts, key=lambda name: (-counts[name], name))
    listed = ", ".join(names[:_MAX_LISTED])
    more = f" and {len(counts) - _MAX_LISTED} more" * (len(counts) > _MAX_LISTED)
    hint = ""
    if any("." in name for name in counts):
        hint = " (an extension begins at the first dot of a name: rename 1.5.jpg to 1_5.jpg)"
    return f"the extensions {listed}{more}{hint}"
