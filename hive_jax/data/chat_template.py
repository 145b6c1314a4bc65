"""Chat templates: a conversation as the text that a tokenizer's model was made for.

A template is Jinja that others wrote, so it runs in Jinja's sandbox. Its text equals that
of transformers' `apply_chat_template`, but for the date; see `fix_date`.
"""

import datetime
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence

from hive_jax.errors import DataError

# Llama 3.1's template has this date where none is given.
DATE = datetime.date(2024, 7, 26)
_DATE_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class ChatTemplateError(DataError):
    """A template cannot render a conversation."""


class ChatTemplate:
    """A chat template.

    Args:
      source: the template, in Jinja.
      tokens: role -> token, such as "bos_token" -> "<s>", which templates refer to.
      where: the file, for errors.

    Raises:
      DataError: the template is not valid Jinja.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], where: str):
        import jinja2

        self.where, self._tokens = where, dict(tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise DataError(
                f"{where}: the chat template is not valid: {error}"
            ) from None

    def render(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False
    ) -> str:
        """Returns the text of a conversation.

        Args:
          messages: each with "role" ("system", "user" or "assistant") and "content".
          add_generation_prompt: end with what comes before an answer.

        Raises:
          ChatTemplateError: the template refuses the conversation, or fails.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
        except Exception as error:  # noqa: BLE001 - it is code of others
            raise ChatTemplateError(f"the chat template fails: {error}") from None


def fix_date(source: str) -> str:
    """Replaces today's date in a template by the one that `ChatTemplate` prints.

    A run gives the same result whenever it is started, and so does its export.
    """
    return _DATE_CALL.sub(lambda match: json.dumps(_format_date(match[2])), source)


def fingerprint_of(source: str) -> str:
    """Returns a hash of a template; empty for none."""
    return source and hashlib.sha256(source.encode()).hexdigest()[:16]


def _format_date(format: str) -> str:
    return DATE.strftime(format)


@functools.cache
def _environment():
    """Returns the environment that transformers' templates are written for."""
    import jinja2
    from jinja2 import ext, nodes, sandbox

    class GenerationBlocks(ext.Extension):
        """{% generation %}, by which some templates mark answers."""

        tags = frozenset({"generation"})

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Namespace(jinja2.utils.Namespace):
        """A namespace that cannot pose as another object, which the sandbox would call."""

        def __init__(*args, **attributes):
            self, *args = args
            attributes = dict(*args, **attributes)
            jinja2.utils.Namespace.__init__(self)
            for name, value in attributes.items():
                Namespace.__setitem__(self, name, value)

        def __setitem__(self, name, value):
            if str(name).startswith("_"):
                raise jinja2.exceptions.SecurityError(
                    f"it sets {name!r}; expected a name without an underscore before it"
                )
            jinja2.utils.Namespace.__setitem__(self, name, value)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationBlocks, ext.loopcontrols],
    )
    # Jinja's own filter escapes HTML.
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": _format_date,
        "namespace": Namespace,
    }
    return environment


def _to_json(
    value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message):
    raise ChatTemplateError(message)
