"""Chat templates render as Hugging Face's do, say where answers are, and cannot do anything else."""

import json
import pickle

import numpy as np
import pytest

from data import templates
from data.chat import rendered
from data.errors import DataError
from data.readers.fields import Malformed
from data.supervised import Chats
from data.templates import CHATML, Template, load
from data.tokenizer import byte_tokenizer
from tests.data import chat_cases

TURNS = chat_cases.turns("Say hi", "hi")


@pytest.fixture(scope="module")
def tokenizer():
    return chat_cases.tokenizer()


def example(tokenizer, template, messages):
    return Chats(tokenizer, template, "messages")({"messages": messages})


@pytest.mark.parametrize("sources", [chat_cases.MARKED, chat_cases.PLAIN], ids=["marked", "plain"])
@pytest.mark.parametrize("case", chat_cases.cases(), ids="/".join)
def test_answers_are_those_of_transformers(tokenizer, sources, case):
    """Whether the template marks its answers, or they are what is added to the prompts for them."""
    template, conversation = case
    expected = json.loads(chat_cases.GOLDEN.read_text())["/".join(case)]
    made = example(
        tokenizer,
        Template(template, sources[template], chat_cases.VARIABLES),
        chat_cases.CONVERSATIONS[conversation],
    )
    assert made.ids.tolist() == expected["ids"]
    assert made.marked.astype(int).tolist() == expected["answers"]


def test_the_built_in_template_is_chatml(tokenizer):
    for conversation in chat_cases.CONVERSATIONS.values():
        for prompt in (False, True):
            ours, theirs = (Template("", source, {}) for source in (CHATML, chat_cases.MARKED["chatml"]))
            assert ours.render(conversation, prompt) == theirs.render(conversation, prompt)


def test_the_token_of_an_answer_that_the_store_puts_in_front_is_not_written_twice(tokenizer):
    twice = Template("", "<|endoftext|>" + CHATML, {})
    once = Template("", CHATML, {})
    assert example(tokenizer, twice, TURNS).ids.tolist() == example(tokenizer, once, TURNS).ids.tolist()


@pytest.mark.parametrize(
    "source",
    [
        # Turns before the last one lose their thoughts, as some published templates have it.
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last else m.content[:1] }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        # Only of answers, so that each is as it was asked for until the next one is.
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if loop.last or m.role == 'user' else m.content[:1] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        # The prompt for an answer is not how the answer begins.
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}",
    ],
)
def test_a_template_that_changes_what_stands_before_an_answer_is_refused(source):
    messages = chat_cases.turns("Say hi", "hi there", "Again", "hi")
    with pytest.raises(Malformed, match="does not render message 2 behind the prompt for it"):
        rendered(Template("FILE", source, {}), messages, {})


def test_an_end_of_turn_that_is_text_is_predicted_and_space_behind_a_token_is_not():
    plain = Template(
        "",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{{ 'assistant: ' if add_generation_prompt }}",
        {},
    )
    text, spans = rendered(plain, TURNS, {})
    assert [text[start:stop] for start, stop in spans] == ["hi\n"]
    text, spans = rendered(Template("", chat_cases.PLAIN["chatml"], {}), TURNS, {"<|im_end|>": 1})
    assert [text[start:stop] for start, stop in spans] == ["hi<|im_end|>"]


def test_a_template_that_renders_no_answer_is_refused():
    with pytest.raises(Malformed, match="renders no answer"):
        rendered(
            Template("FILE", "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", {}), TURNS, {}
        )


@pytest.mark.parametrize(
    "source, message",
    [
        ("{{ raise_exception('roles must alternate') }}", "FILE refuses it: roles must alternate"),
        ("{{ messages.append(1) }}", "refuses it: "),
        ("{{ messages.__class__.__mro__ }}", "refuses it: "),
        ("{{ strftime_now('%d') }}", "'strftime_now' is undefined"),
        ("{{ messages[0].content + 1 }}", "refuses it: "),
    ],
)
def test_what_a_template_may_not_do(source, message):
    with pytest.raises(ValueError, match=message):
        Template("FILE", source, {}).render(TURNS)


def test_what_a_template_may_do():
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
        "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}{{ '26 Jul 2024' }}{% endif %}"
        "{{ extra_token }}"
    )
    text, _ = Template("", source, {"extra_token": "<e>"}).render([{"role": "user", "content": "<é>"}, *TURNS])
    assert text == '{"role": "user", "content": "<é>"}26 Jul 2024<e>'


def test_a_template_goes_to_other_processes():
    made = Template("x", chat_cases.MARKED["zephyr"], chat_cases.VARIABLES)
    again = pickle.loads(pickle.dumps(made))
    assert again.render(TURNS) == made.render(TURNS) and again.fingerprint == made.fingerprint


def test_a_template_is_found_where_hugging_face_keeps_it(tmp_path):
    source, tokenizer = "{{ bos_token }}{{ eos_token }}{{ messages[0].content }}", byte_tokenizer(("<s>", "</s>"))
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "model_max_length": 9}
    path = tmp_path / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": source}]
    for held in (source, named):
        path.write_text(json.dumps({**config, "chat_template": held}))
        assert load(str(path), tokenizer).render(TURNS)[0] == "<s></s>Say hi"
    (tmp_path / "chat_template.jinja").write_text(source)
    assert load(str(tmp_path / "chat_template.jinja"), tokenizer).render(TURNS)[0] == "<s></s>Say hi"
    path.unlink()
    assert load(str(tmp_path / "chat_template.jinja"), tokenizer).render(TURNS)[0] == "<|endoftext|><|endoftext|>Say hi"


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("missing.jinja", None, "cannot be read: No such file or directory. Check data.objective.template"),
        ("a.jinja", b"\xff", "is not UTF-8"),
        ("a.jinja", b"{% for %}", "line 1, is no Jinja"),
        ("a.jinja", b"{% generation %}x", "is no Jinja"),
        ("tokenizer_config.json", b"{", "is not valid JSON"),
        ("tokenizer_config.json", b"[]", "holds a JSON list"),
        ("tokenizer_config.json", b"{}", "has no chat_template that is text"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "rag", "template": "x"}]}', "has no chat_template"),
    ],
)
def test_what_is_no_template_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(str(path), byte_tokenizer())


def test_all_that_decides_a_rendering_changes_the_fingerprint():
    found = {Template("", *pair).fingerprint for pair in (("a", {}), ("b", {}), ("a", {"bos_token": "<s>"}))}
    assert len(found) == 3
    assert templates.read("chatml") == {"source": CHATML, "variables": {}}
    assert np.unique([len(fingerprint) for fingerprint in found]).tolist() == [64]
