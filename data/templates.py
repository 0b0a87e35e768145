"""Chat templates: Jinja as in Hugging Face tokenizer configs, rendered in a sandbox.

A template reads `messages`, `add_generation_prompt`, `bos_token`, `eos_token` and what else its tokenizer_config.json
calls a special token. It may call `raise_exception`, `break`, `continue` and `tojson`; what it puts between
`{% generation %}` and `{% endgeneration %}` is the assistant's. `strftime_now` is not there: rows must be the same
tomorrow, and templates that ask for today's date fall back to one of their own where it is not defined.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.errors import DataError
from data.files import canonical_json
from data.tokenizer import Tokenizer

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{% generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}
{{- message.content + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
BUILT_IN = {"chatml": CHATML}
# Where an answer begins and ends in what is rendered: code points that are no characters, in any text.
START, STOP = "\ufdd0", "\ufdd1"
BORDERS = re.compile(f"[{START}{STOP}]")
CONFIG = "tokenizer_config.json"

Message = dict[str, str]  # role, content
Span = tuple[int, int]  # in characters


class Generation(Extension):
    """The block whose text an assistant has said."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_bordered"), [], [], body).set_lineno(line)

    def _bordered(self, caller) -> str:
        return START + caller() + STOP


class Template:
    """A template, compiled.

    Attributes:
      name: where it is from, for errors.
      marks_answers: whether it says itself, by `{% generation %}`, what the assistant's answers are.
      fingerprint: hexadecimal SHA-256 of all that decides what is rendered.
    """

    def __init__(self, name: str, source: str, variables: dict[str, str]):
        """`variables`: the special tokens that the template knows by name. DataError where it is no Jinja."""
        self.name, self._source, self._variables = name, source, variables
        self.fingerprint = hashlib.sha256(canonical_json([source, variables])).hexdigest()
        try:
            self._compiled = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"The chat template {name}, line {error.lineno}, is no Jinja: {error.message}.") from error
        self.marks_answers = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None

    def __reduce__(self):  # what is compiled does not travel
        return Template, (self.name, self._source, self._variables)

    def render(self, messages: list[Message], add_generation_prompt: bool = False) -> tuple[str, list[Span]]:
        """(text, where in it the answers are that the template marks). ValueError says why there is none."""
        try:
            found = self._compiled.render(
                **self._variables,
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
            )
        except Exception as error:  # whatever the code of a template comes to
            raise ValueError(f"the chat template {self.name} refuses it: {error}") from error
        text, spans, begun, behind = "", [], [], 0
        for border in BORDERS.finditer(found):
            text += found[behind : border.start()]
            behind = border.end()
            if border[0] == START:
                begun.append(len(text))
            else:
                spans.append((begun.pop(), len(text)))
        return text + found[behind:], spans


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise
    return made


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Jinja's own escapes what HTML would take for its own."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def load(name: str, tokenizer: Tokenizer) -> Template:
    """The template `name`, as `read` finds it.

    Where no tokenizer_config.json says what `bos_token` and `eos_token` are, they are the tokenizer's end of text and
    the token that ends a text.
    """
    found = read(name)
    usual = {"bos_token": tokenizer.end_of_text_token, "eos_token": tokenizer.name_of(tokenizer.stop)}
    return Template(name, found["source"], usual | found["variables"])


def read(name: str) -> dict:
    """{"source": of the template `name`, "variables": the special tokens that its tokenizer_config.json names}.

    It is one of BUILT_IN, in a tokenizer_config.json, or any other file, of Jinja; then a tokenizer_config.json beside
    it says the variables. DataError where the file holds no template.
    """
    if name in BUILT_IN:
        return {"source": BUILT_IN[name], "variables": {}}
    path = Path(name).expanduser()
    text = _read(path)
    if path.suffix != ".json":
        beside = path.with_name(CONFIG)
        return {"source": text, "variables": _special(_parsed(beside, _read(beside))) if beside.is_file() else {}}
    config = _parsed(path, text)
    found = config.get("chat_template")
    if isinstance(found, list):  # several by name
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}.get("default")
    if not isinstance(found, str):
        raise DataError(
            f"{name} has no chat_template that is text. Set data.objective.template to a file of Jinja, such as the "
            f"chat_template.jinja beside it, or to one of {', '.join(BUILT_IN)}."
        )
    return {"source": found, "variables": _special(config)}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"The chat template {path} cannot be read: {error.strerror}. Check data.objective.template: it "
            f"names a file, or is one of {', '.join(BUILT_IN)}."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"The chat template {path} is not UTF-8: {error.reason} at byte {error.start}.") from error


def _parsed(path: Path, text: str) -> dict:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a JSON {type(found).__name__}, expected the settings of a tokenizer.")
    return found


def _special(config: dict) -> dict[str, str]:
    """{name: token} of every `*_token` that a tokenizer_config.json names."""
    tokens = {key: value for key, value in config.items() if key.endswith("_token")}
    spelt = {key: value.get("content") if isinstance(value, dict) else value for key, value in tokens.items()}
    return {key: value for key, value in spelt.items() if isinstance(value, str)}
