"""The corpus that every Python carries: English and code, parsed and not imported, each document on one side."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from data import corpus, sources
from data.errors import DataError
from data.source_config import TfdsSource

TREE = {
    "abc.py": '"""A module."""\nraise SystemExit("imported")\n',
    "json/__init__.py": "import abc\n",
    "latin.py": "# -*- coding: latin-1 -*-\nname = 'na\xefve'\n".encode("latin-1"),
    "broken.py": b"\xff\xfe\x00",
    "empty.py": "  \n",
    "copy_of_abc.py": '"""A module."""\nraise SystemExit("imported")\n',
    "encodings/cp037.py": "decoding_table = ('A')\n",
    "encodings/utf_8.py": "import codecs\n",
    "json/tests/test_json.py": "left out",
    "test/test_abc.py": "left out",
    "idlelib/run.py": "left out",
    "lib2to3/main.py": "left out",
    "site-packages/other.py": "left out",
    "dist-packages/other.py": "left out",
    "config-3.11-x86_64-linux-gnu/python-config.py": "left out",
    "_sysconfigdata__linux_.py": "left out",
    "readme.txt": "left out",
    "pydoc_data/__init__.py": "left out",
    "pydoc_data/topics.py": """# Generated
topics = {'if': 'The "if" '
 'statement\\n', 'for': r'''The for
statement'''}
""",
}


@pytest.fixture
def tree(tmp_path) -> Path:
    for name, content in TREE.items():
        path = tmp_path / "library" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / "library"


def test_documents_are_topics_and_modules(tree):
    assert dict(corpus.documents(tree)) == {
        "abc.py": TREE["abc.py"],
        "encodings/utf_8.py": "import codecs\n",
        "json/__init__.py": "import abc\n",
        "latin.py": "# -*- coding: latin-1 -*-\nname = 'naïve'\n",
        "pydoc_data/topics/for": "The for\nstatement",
        "pydoc_data/topics/if": 'The "if" statement\n',
    }
    paths = [path for path, _ in corpus.documents(tree)]
    assert paths == sorted(paths)


def test_prepared_as_array_records_in_order(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "VALIDATION_SHARE", 0.4)
    config = corpus.LibraryConfig(name="tree", root=str(tree))
    builder = corpus.PythonLibrary(data_dir=str(tmp_path / "tfds"), config=config, file_format="array_record")
    builder.download_and_prepare()
    sides = {}
    for split in ("train", "validation"):
        examples = [builder.as_data_source(split)[i] for i in range(builder.info.splits[split].num_examples)]
        sides[split] = [(example["id"].decode(), example["text"].decode()) for example in examples]
        assert sides[split] and sides[split] == sorted(sides[split])
    assert sorted(sides["train"] + sides["validation"]) == list(corpus.documents(tree))
    assert all(corpus.held_out(path) for path, _ in sides["validation"])


def test_a_library_without_source_is_a_data_error(tmp_path):
    config = corpus.LibraryConfig(name="tree", root=str(tmp_path))
    with pytest.raises(DataError, match="carries no source"):
        corpus.PythonLibrary(data_dir=str(tmp_path / "tfds"), config=config).check()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, list[str], list[str]]:
    """The cache directory and both sides of this Python's own library, through the source that recipes use."""
    directory = tmp_path_factory.mktemp("cache")
    splits = [list(sources.documents(TfdsSource(), split, str(directory))) for split in ("train", "validation")]
    return directory, *splits


def test_this_python_carries_enough_of_it(whole):
    _, train, validation = whole
    size = sum(len(text.encode()) for text in train + validation)
    assert 6e6 < size < 20e6
    assert 0.01 < sum(len(text.encode()) for text in validation) / size < 0.12


def test_no_document_is_on_both_sides(whole):
    _, train, validation = whole
    assert len(set(train)) == len(train) and len(set(validation)) == len(validation)
    assert not set(train) & set(validation)


def test_holds_topics_and_modules_and_no_tests(whole):
    _, train, validation = whole
    everything = set(train + validation)
    library = Path(sysconfig.get_path("stdlib"))
    for name in ("argparse.py", "json/decoder.py", "asyncio/events.py"):
        assert (library / name).read_text(encoding="utf-8") in everything
    assert any(text.startswith('The "if" statement') for text in everything)
    for name in ("test/test_json/test_decode.py", "idlelib/run.py", "pydoc_data/topics.py"):
        if (library / name).exists():
            assert (library / name).read_text(encoding="utf-8") not in everything


def test_prepared_without_tensorflow_and_quietly(tmp_path):
    """In a process of its own, which prints nothing."""
    script = (
        "import sys\n"
        "from data import corpus, sources; from data.source_config import TfdsSource\n"
        "corpus.PythonLibrary.builder_configs['tree'] = corpus.LibraryConfig(name='tree', root=sys.argv[1])\n"
        "source = TfdsSource(dataset='python_library/tree', validation_split='')\n"
        "assert len(list(sources.documents(source, 'train', sys.argv[2]))) > 10\n"
        "assert not {'tensorflow', 'jax', 'torch'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(root / "data"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


BAD = {
    "an unknown split": ({"train_split": "training"}, r"'training' \(data\.source\.train_split\).*train, validation"),
    "an unknown field": ({"field": "body"}, r"no feature 'body' \(data\.source\.field\); it has id, text"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_a_data_error(case, whole):
    fields, pattern = BAD[case]
    with pytest.raises(DataError, match=pattern):
        list(sources.documents(TfdsSource(**fields), "train", str(whole[0])))


def test_splits_may_be_slices(whole):
    directory, train, _ = whole
    source = TfdsSource(train_split="train[:10]", validation_split="train[10:15]")
    assert list(sources.documents(source, "train", str(directory))) == train[:10]
    assert list(sources.documents(source, "validation", str(directory))) == train[10:15]
