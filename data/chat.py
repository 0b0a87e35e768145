"""Conversations: messages by turns, as text in which the assistant's answers are known."""

from __future__ import annotations

import json

from data.readers.fields import Malformed
from data.templates import BORDERS, Message, Span, Template

ASSISTANT = "assistant"
ROLES = ("system", "developer", "user", ASSISTANT, "tool")
SHAREGPT = {"human": "user", "gpt": ASSISTANT}  # how its data sets call these roles


def messages_of(value: object, column: str) -> list[Message]:
    """The messages of a column, up to the last answer: a list of {role, content}, or ShareGPT's {from, value}.

    What stands behind the last answer is no part of any prediction. Malformed where there is no answer, a role is
    unknown, or a content is no text.
    """
    if not isinstance(value, list):
        raise Malformed(f": {column!r} is {_shown(value)}, expected a list of messages.")
    if not value:
        raise Malformed(f": {column!r} is empty, expected messages.")
    messages = [_message(entry, f"message {number} of {column!r}") for number, entry in enumerate(value, 1)]
    answers = [place for place, message in enumerate(messages) if message["role"] == ASSISTANT]
    if not answers:
        raise Malformed(f": {column!r} holds no message of the role {ASSISTANT!r}, so nothing is to be predicted.")
    return messages[: answers[-1] + 1]


def _message(entry: object, what: str) -> Message:
    if not isinstance(entry, dict):
        raise Malformed(f": {what} is {_shown(entry)}, expected an object with role and content.")
    names = ("from", "value") if "from" in entry and "role" not in entry else ("role", "content")
    for name in names:
        if name not in entry:
            raise Malformed(f": {what} has no key {name!r}; its keys are {', '.join(map(repr, entry)) or 'none'}.")
    role, content = (entry[name] for name in names)
    role = SHAREGPT.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise Malformed(f": {what} has the role {_shown(role)}, must be one of {', '.join(ROLES)}.")
    if not isinstance(content, str) or entry.get("tool_calls"):
        held = _shown(content) if not isinstance(content, str) else "a call of tools"
        raise Malformed(f": {what} is {held}, expected text: nothing else is read.")
    if role == ASSISTANT and not content.strip():
        raise Malformed(f": {what} is an empty answer.")
    if BORDERS.search(content):
        raise Malformed(f": {what} holds U+FDD0 or U+FDD1, which are no characters.")
    return {"role": role, "content": content}


def _shown(value: object) -> str:
    return json.dumps(value, default=repr, ensure_ascii=False)[:80]


def rendered(template: Template, messages: list[Message], special_tokens: dict[str, int]) -> tuple[str, list[Span]]:
    """(text, where in it the answers are, each with what ends its turn).

    Where the template marks no answers itself, an answer is what its message adds to the prompt for it: to the
    messages before it, rendered with `add_generation_prompt`. White space behind a special token that ends a turn
    belongs to no answer. Malformed where the template refuses the messages, or renders the messages before an
    answer otherwise once it is there, so that the prompt could not be told from the answer.
    """
    try:
        text, spans = template.render(messages)
        if not template.marks_answers:
            spans = [
                _added(template, messages, place, text, special_tokens)
                for place, message in enumerate(messages)
                if message["role"] == ASSISTANT
            ]
    except ValueError as error:
        raise Malformed(f": {error}") from error
    spans = [(start, stop) for start, stop in spans if start < stop]
    if not spans:
        raise Malformed(f": the chat template {template.name} renders no answer.")
    return text, spans


def _added(template: Template, messages: list[Message], place: int, text: str, special_tokens: dict[str, int]) -> Span:
    """Where the answer `messages[place]` stands in the text of all messages."""
    before, _ = template.render(messages[:place], add_generation_prompt=True)
    behind, _ = template.render(messages[: place + 1])
    if not (behind.startswith(before) and text.startswith(behind)):
        raise ValueError(
            f"the chat template {template.name} does not render message {place + 1} behind the prompt for it as it "
            "stands alone: messages before an answer change with it, so what a model is asked is not what it was "
            "taught. Mark the answers in the template by {% generation %} and {% endgeneration %}, or take another."
        )
    stop = len(before) + len(behind[len(before) :].rstrip())
    return len(before), stop if behind[:stop].endswith(tuple(special_tokens)) else len(behind)
