"""Which tokens are an assistant's, as transformers has it; the answers are kept for the tests that run without it."""

import json

import pytest

from tests.data import chat_cases

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: `make test-references` installs it beside, and runs this"
)

pytestmark = pytest.mark.references


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "tokenizer.json"
    chat_cases.tokenizer().save(path)
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), **chat_cases.VARIABLES)


def answered(theirs, template: str, conversation: str) -> dict:
    found = theirs.apply_chat_template(
        chat_cases.CONVERSATIONS[conversation],
        chat_template=chat_cases.MARKED[template],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return {"ids": found["input_ids"], "answers": found["assistant_masks"]}


def test_golden_answers_are_theirs(theirs, request):
    found = {"/".join(case): answered(theirs, *case) for case in chat_cases.cases()}
    text = json.dumps(found, indent=1).replace("\n   ", " ").replace("\n  ]", "]") + "\n"
    if request.config.getoption("--update-goldens"):
        chat_cases.GOLDEN.write_text(text)
    assert text == chat_cases.GOLDEN.read_text()
