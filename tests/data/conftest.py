"""A store made of given texts, its ids their bytes."""

import pytest

from data import store
from data.store import Store
from data.tokenizer import byte_tokenizer


@pytest.fixture
def make_store(tmp_path_factory):
    def make(texts) -> Store:
        directory = tmp_path_factory.mktemp("made") / "store"
        store.write(directory, texts, byte_tokenizer(), about={})
        return Store(directory)

    return make
