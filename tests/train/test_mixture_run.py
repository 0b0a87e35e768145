"""A run on several sources: their shares, their counts in the log, a loss for each; stopped and resumed is the same."""

import json

import pytest

from data.errors import ConfigError, DataError
from data.loader import Loader
from data.mixture_config import Component, MixtureSource, Stage
from data.prepare import prepare
from data.source_config import JsonlSource, TextSource
from data.tokenizer_config import BpeTokenizer, FileTokenizer
from tests.helpers import TEXT, digests, lines, replaced, steps, tiny, train
from train.assembly import assemble
from train.errors import Stopped
from train.metrics import read_metrics
from train.session import Feed

OTHER = "\n\n".join(f"ten times {number} is {10 * number}, " * (number % 4 + 1) for number in range(40))


def mixed(directory, changes=(), stages=(), limits=(None, None), weights=(3.0, 1.0)):
    """The tiny run on two files of paragraphs."""
    components = []
    for name, text, weight, limit in zip("ab", (TEXT, OTHER), weights, limits, strict=True):
        path = directory / f"{name}.txt"
        path.write_text(text)
        source = TextSource(paths=(str(path),), document="paragraph", validation_fraction=0.2)
        components.append(Component(name, source, weight, limit))
    source = MixtureSource(components=tuple(components), stages=stages)
    return replaced(tiny(directory), {"data.source": source, "data.length": 64, "eval.every": 3, **dict(changes)})


STAGED = (Stage(4, (1.0, 1.0)),)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mixed")
    config = mixed(directory, stages=STAGED)
    train(config, directory / "whole")
    return config, directory


def records(run):
    return read_metrics(run / "metrics.jsonl")


def test_each_step_tells_what_was_taken_of_each_source(whole):
    config, directory = whole
    feed = Feed.make(assemble(config), prepare(config.data))
    taken = dict.fromkeys("ab", 0)
    for step, record in enumerate((record for record in records(directory / "whole") if "loss" in record), 1):
        for row in range((step - 1) * 8, step * 8):
            taken[feed.loader.place(row).source] += 1
        for name in "ab":
            assert record[f"data/{name}/rows"] == taken[name]
            assert record[f"data/{name}/epochs"] == taken[name] / len(feed.loader.sources[name])
    assert taken["a"] == pytest.approx(4 * 8 * 3 / 4 + 2 * 8 / 2, abs=2)


def test_each_source_has_its_loss_and_all_of_them_have_one(whole):
    config, directory = whole
    evaluated = [record for record in records(directory / "whole") if "loss" not in record]
    assert [record["step"] for record in evaluated] == [3, 6]
    stores = {name: stores.validation for name, stores in prepare(config.data).sources.items()}
    for record in evaluated:
        for metric, size in (("loss", "num_tokens"), ("bits_per_byte", "text_bytes")):
            parts = {name: record[f"eval/{name}/{metric}"] for name in stores}
            sizes = {name: getattr(stores[name], size) for name in stores}
            mean = sum(parts[name] * sizes[name] for name in stores) / sum(sizes.values())
            assert record[f"eval/validation/{metric}"] == pytest.approx(mean, rel=1e-6)
            assert parts["a"] != parts["b"]


@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.slow), 4, pytest.param(5, marks=pytest.mark.slow)])
def test_stopped_and_resumed_at_a_stage_is_the_same(whole, stop):
    config, directory = whole
    run = directory / f"stopped-{stop}"
    with pytest.raises(Stopped):
        train(config, run, stop_after=stop)
    assert steps(run) == [stop]
    train(config, run)
    assert digests(run) == digests(directory / "whole") and lines(run) == lines(directory / "whole")


def test_a_stage_that_moves_with_the_length_of_the_run_is_refused_on_resume(tmp_path):
    config = mixed(tmp_path, stages=(Stage("50%", (1.0, 1.0)),))
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop_after=2)
    with pytest.raises(ConfigError, match=r"mixture_stages was .*1.0\] from row 24, now .* from row 48"):
        train(replaced(config, {"train.steps": 12}), tmp_path / "run")


def test_a_run_that_asks_for_more_than_the_sources_may_give_is_refused(tmp_path):
    config = mixed(tmp_path, limits=(1.0, 1.5), changes={"train.steps": 1000})
    with pytest.raises(ConfigError, match=r"mixture ends after \d+ rows, in step \d+ of 1000: .*max_epochs"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_stages_are_in_the_order_of_the_run(tmp_path):
    config = mixed(tmp_path, stages=(Stage(5, (1.0, 1.0)), Stage("10%", (0.0, 1.0))))
    with pytest.raises(ConfigError, match=r"data.source.stages.1.start is '10%', which comes to step 1"):
        train(config, tmp_path / "run")


def test_the_best_checkpoint_may_be_that_of_one_source(tmp_path):
    config = mixed(tmp_path, {"checkpoint.best": "eval/b/loss"})
    train(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="eval/a/loss, .*eval/b/loss"):
        train(replaced(config, {"checkpoint.best": "eval/c/loss"}), tmp_path / "other")


def test_one_source_of_a_mixture_is_that_source_alone(tmp_path):
    """Weights of 1 and 0: the batches are those without a mixture, and a store is not made twice."""
    config = mixed(tmp_path, weights=(1.0, 0.0))
    alone = replaced(config, {"data.source": config.data.source.components[0].source})
    feeds = [Feed.make(assemble(each), prepare(each.data)) for each in (config, alone)]
    for step in (0, 3, 50):
        one, other = (feed.loader.batch(step) for feed in feeds)
        assert all((one[key] == other[key]).all() for key in one)
    assert len(list((tmp_path / "cache" / "stores").glob("[!.]*"))) == 2


def test_another_weight_or_source_touches_no_other_store(tmp_path):
    config = mixed(tmp_path)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "stores").glob("*/*/*")}
    prepare(config.data)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "stores").glob("*/*/*")}
    (tmp_path / "c.txt").write_text("something new, " * 500)
    new = Component("c", TextSource(paths=(str(tmp_path / "c.txt"),), validation_fraction=0.0), 0.5)
    more = MixtureSource(components=(*config.data.source.components, new))
    prepared = prepare(replaced(config.data, {"source": more}))
    assert list(prepared.sources) == ["a", "b", "c"] and prepared.sources["c"].validation is None
    assert made and all(path.stat().st_mtime_ns == then for path, then in made.items())


def test_a_trained_tokenizer_is_that_of_all_components(tmp_path):
    config = mixed(tmp_path, {"data.tokenizer": BpeTokenizer(vocab_size=300)})
    prepared = prepare(config.data)
    assert len({stores.train.header["tokenizer_fingerprint"] for stores in prepared.sources.values()}) == 1
    (path,) = (tmp_path / "cache" / "tokenizers").glob("*.json")
    assert prepare(replaced(config.data, {"tokenizer": FileTokenizer(path=str(path))})).fingerprint == (
        prepared.fingerprint
    )
    pieces = json.loads(path.read_text())["model"]["vocab"]
    assert any("times" in piece for piece in pieces) and any("ounting" in piece for piece in pieces)


def test_an_error_names_its_component(tmp_path):
    config = mixed(tmp_path)
    (tmp_path / "b.txt").write_bytes(b"fine\n\nnot \xff fine")
    with pytest.raises(DataError, match=r"Component 'b' of data.source: .*b.txt is not UTF-8"):
        prepare(config.data)


def test_processes_make_the_same_batches_of_a_mixture(whole):
    config, _ = whole
    feed = Feed.make(assemble(config), prepare(config.data))
    for step in (0, 3, 4, 40):
        expected = feed.loader.batch(step)
        for processes in (2, 4):
            share = 8 // processes
            loaders: list[Loader] = [Feed.make(feed.assembly, prepare(config.data)).loader for _ in range(processes)]
            parts = [loader.batch(step, share * i, share * (i + 1)) for i, loader in enumerate(loaders)]
            for key, value in expected.items():
                assert all((part[key] == value[share * i : share * (i + 1)]).all() for i, part in enumerate(parts))


def test_a_trained_tokenizer_is_that_of_the_text_that_is_read(tmp_path):
    """The same files read another way, by another field, train another tokenizer."""
    path = tmp_path / "both.jsonl"
    path.write_text("".join(json.dumps({"one": f"ones {n} " * 9, "two": f"twos {n} " * 9}) + "\n" for n in range(30)))
    found = []
    for field in ("one", "two"):
        source = JsonlSource(paths=(str(path),), field=field, validation_fraction=0.0)
        mixture = MixtureSource(components=(Component("a", source),))
        changes = {"data.source": mixture, "data.tokenizer": BpeTokenizer(vocab_size=280)}
        found.append(prepare(replaced(tiny(tmp_path), changes).data).tokenizer.fingerprint)
    assert found[0] != found[1]
