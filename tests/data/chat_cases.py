"""Chat templates and conversations, of which transformers has said which tokens are the assistant's.

The answers stand in golden/chat_templates.json; `tests/references/test_chat_templates.py` asks transformers again.
"""

from pathlib import Path

from data.tokenizer import Tokenizer, byte_tokenizer

GOLDEN = Path(__file__).parent / "golden" / "chat_templates.json"
SPECIAL = (
    *("<|im_start|>", "<|im_end|>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<s>", "</s>", "[INST]", "[/INST]"),
)
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
BEGIN, END = "{% generation %}", "{% endgeneration %}"
# As the published ones of these names lay turns out, in few words.
MARKED = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
        + BEGIN
        + "{{ message['content'] }}<|im_end|>"
        + END
        + "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
    ),
    "llama3": (
        "{{- '<|begin_of_text|>' }}{%- for message in messages %}"
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{%- if message['role'] == 'assistant' %}"
        + BEGIN
        + "{{- message['content'] | trim + '<|eot_id|>' }}"
        + END
        + "{%- else %}"
        "{{- message['content'] | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>\n' }}"
        + BEGIN
        + "{{ message['content'] + eos_token }}"
        + END
        + "{% else %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}{% endif %}{{ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        + BEGIN
        + "{{ ' ' + message['content'] + eos_token }}"
        + END
        + "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
}
PLAIN = {name: source.replace(BEGIN, "").replace(END, "") for name, source in MARKED.items()}


def turns(*contents: str, system: str | None = None) -> list[dict]:
    roles = ("user", "assistant")
    found = [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]
    return found if system is None else [{"role": "system", "content": system}, *found]


CONVERSATIONS = {
    "one": turns("What is two and two?", "Four."),
    "several": turns("Say hi", "hi", "Again, in Chinese", "你好,世界 🙂", "Thanks", "  You're welcome.\n\n1. a\n2. b"),
    "system": turns("Who are you?", "A model.", system="Be short.\nBe kind."),
    "as the template": turns("assistant\nFour.", "assistant", "user", "Four. assistant"),
}


def cases() -> list[tuple[str, str]]:
    """(template, conversation), but for what a template does not take."""
    return [(t, c) for t in MARKED for c in CONVERSATIONS if not (t == "mistral" and c == "system")]


def tokenizer() -> Tokenizer:
    """Bytes, so that no token is larger than what a template puts side by side."""
    return byte_tokenizer(SPECIAL)
