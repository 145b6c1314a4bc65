"""Conversations as text, with the characters that training needs to know.

Templates do not say where an answer begins and ends. It begins after the text up to the
generation prompt, rendered without what follows, and ends with the template's end token.
Both are verified for each answer, so that no other character becomes a label.
"""

import dataclasses
import re
from collections.abc import Collection, Sequence

from hive_jax.data.chat_template import ChatTemplate, ChatTemplateError
from hive_jax.data.types import Sample
from hive_jax.errors import DataError

Span = tuple[int, int]
_ANSWERS = "assistant"
# Private-use characters, which no template writes. One of them marks names of tokens
# while a template runs.
_MARKS = [chr(code) for code in range(0xF0000, 0xF0100)]
# An answer that cannot be taken for a part of a template.
_EXAMPLE = "b" + _MARKS[0]


@dataclasses.dataclass(frozen=True)
class RenderedChat:
    """A conversation as text, with spans (start, end) of its characters.

    Attributes:
      text: the whole text.
      answers: spans of the answers, each with its end token.
      literal: spans of the messages in which names of control tokens are text.
      image_start: the first character that sees the image.
    """

    text: str
    answers: tuple[Span, ...]
    literal: tuple[Span, ...]
    image_start: int


class ChatFormat:
    """How a tokenizer's chat template writes conversations.

    Attributes:
      end_token: that the template writes after each answer.
      example: a question and its answer, as the template writes them.

    Args:
      template: the template.
      special: contents of the tokens that are never part of a text.
      added: contents of all tokens that are matched as a whole.

    Raises:
      DataError: the template cannot render a question and its answer, writes no end
        token after an answer, or does not say where an answer begins.
    """

    def __init__(
        self, template: ChatTemplate, special: Collection[str], added: Collection[str]
    ):
        self._template = template
        question = {"role": "user", "content": "a"}
        messages = [question, {"role": _ANSWERS, "content": _EXAMPLE}]
        try:
            text = self.example = template.render(messages)
            prompt = template.render([question], add_generation_prompt=True)
            without = template.render([question])
        except ChatTemplateError as error:
            raise DataError(f"{template.where}: {error}") from None
        if not text.startswith(prompt):
            raise DataError(
                f"{template.where}: the chat template writes {text!r:.200} for an answer "
                f"after the prompt {prompt!r:.200}; expected the same beginning"
            )
        body, _, tail = text[len(prompt) :].rpartition(_EXAMPLE)
        tail = tail.lstrip()
        ends = [token for token in added if token and tail.startswith(token)]
        if not ends:
            raise DataError(
                f"{template.where}: the chat template writes {tail!r:.80} after an answer;"
                " expected a token of this tokenizer that ends it"
            )
        if prompt == without and body.strip():
            raise DataError(
                f"{template.where}: the chat template writes {body!r:.80} before an "
                "answer; expected it with add_generation_prompt"
            )
        self.end_token = max(ends, key=len)
        names = sorted({*special, self.end_token} - {""}, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)))

    def render(self, sample: Sample) -> RenderedChat:
        """Renders a conversation.

        Args:
          sample: its segments have roles.

        Raises:
          ChatTemplateError: the template refuses it, or writes it such that an answer
            cannot be told from the rest.
        """
        messages = [{"role": s.role, "content": s.text} for s in sample.segments]
        text = self._template.render(messages, sample.awaits_answer)
        literal = self._literal(messages, text, sample.awaits_answer)
        if sample.awaits_answer:
            return RenderedChat(text, (), literal, image_start=0)
        answers = {
            number: self._answer(messages, number, text, literal)
            for number, message in enumerate(messages)
            if message["role"] == _ANSWERS
        }
        # The image comes with its turn, after the answer before it.
        earlier = [end for n, (_, end) in answers.items() if n < sample.image_before]
        targets = tuple(answers[n] for n in answers if sample.segments[n].target)
        return RenderedChat(text, targets, literal, max(earlier, default=0))

    def _literal(self, messages: Sequence[dict], text: str, prompt: bool) -> tuple:
        """Finds the names of control tokens that messages brought into the text."""
        contents = "".join(message["content"] for message in messages)
        if not self._control.search(contents):
            return ()
        mark = next(mark for mark in _MARKS if mark not in text)
        marked = [
            message
            | {"content": self._control.sub(f"{mark}\\g<0>{mark}", message["content"])}
            for message in messages
        ]
        pieces = self._template.render(marked, prompt).split(mark)
        named = all(map(self._control.fullmatch, pieces[1::2]))
        if "".join(pieces) != text or len(pieces) % 2 == 0 or not named:
            raise ChatTemplateError(
                "a message has the name of a special token, which the chat template "
                "changes; expected messages without it"
            )
        spans, position = [], 0
        for number, piece in enumerate(pieces):
            if number % 2:
                spans.append((position, position + len(piece)))
            position += len(piece)
        return tuple(spans)

    def _answer(
        self, messages: Sequence[dict], number: int, text: str, literal: Sequence[Span]
    ) -> Span:
        """Finds an answer, from behind the generation prompt to its end token."""
        prompt = self._template.render(messages[:number], add_generation_prompt=True)
        if not text.startswith(prompt):
            raise ChatTemplateError(
                f"message {number}: the chat template writes other text before the "
                "answer than without what follows, so that its place is not known"
            )
        start, end = len(prompt), text.find(self.end_token, len(prompt))
        while any(first <= end < last for first, last in literal):
            end = text.find(self.end_token, end + 1)
        body, content = text[start:end].strip(), messages[number]["content"].strip()
        # A template may write more, as an empty thought, or less, as an old one dropped.
        is_answer = body.endswith(content) or (body and content.endswith(body))
        if end < 0 or not is_answer:
            raise ChatTemplateError(
                f"message {number}: the chat template does not write the answer followed "
                f"by {self.end_token!r}"
            )
        return start, end + len(self.end_token)
