"""The configuration of a run: complete, checked before anything is compiled, each refusal naming the way out."""

import json
import math
from dataclasses import replace

import pytest

from data import settings
from data.config import missing_inputs
from data.errors import ConfigError
from data.schema import entry_hint, hints, leaves, scalar_types, variants
from data.source_config import TextSource
from data.tokenizer_config import FileTokenizer
from model.parameters import KINDS
from train.checks import PARAMETER_KINDS, RULES, check, check_devices, load
from train.config import Config, Mesh, defaults

MASKED = ["model.attention.causal=false", "data.tokenizer.name=wordpiece", "data.objective.name=masked"]
RECIPE = "from train.config import defaults\ndef get_config():\n    return defaults()\n"


@pytest.fixture
def refused(tmp_path):
    """The paragraph with which overrides of the defaults are refused."""
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)

    def message(*overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(str(path), [f"--config.{override}" for override in overrides])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    message.path = str(path)
    return message


def test_defaults_are_the_dataclasses():
    config = defaults()
    assert settings.from_plain(Config, config.to_dict()) == Config()
    assert config.is_locked and config.is_type_safe
    check(Config())


def test_optional_fields_are_typed_placeholders():
    config = defaults()
    assert config.model.attention.num_kv_heads is None
    assert config.model.attention.get_type("num_kv_heads") is int
    assert config.eval.get_type("batches") is int
    with pytest.raises(ConfigError, match="model.attention.num_kv_heads"):
        config.model.attention.num_kv_heads = "2"


def test_sections_are_the_ones_that_scripts_rely_on():
    assert list(defaults()) == ["model", "data", "optim", "train", "mesh", "checkpoint", "eval", "log"]


def test_a_loaded_recipe_is_checked(refused):
    assert load(refused.path) == Config()
    assert "train.accumulate" in refused("train.accumulate=3")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.attention.num_heads=3"], ["model.attention.num_heads is 3", "256"]),
        (["model.attention.num_kv_heads=3"], ["model.attention.num_kv_heads is 3", "8"]),
        (["model.attention.num_kv_heads=0"], ["model.attention.num_kv_heads is 0", "at least 1"]),
        (["model.attention.head_dim=0"], ["model.attention.head_dim is 0", "at least 1"]),
        (["model.attention.head_dim=31"], ["model.attention.head_dim is 31", "even"]),
        (["model.dtype=float16"], ["model.dtype is 'float16'", "float32, bfloat16"]),
        (["model.dropout=1"], ["model.dropout is 1.0", "below 1"]),
        (["model.norm.bias=true"], ["model.norm.bias", "rmsnorm"]),
        (["model.pattern=[]"], ["model.pattern is empty"]),
        (["model.pattern.0.window=0"], ["model.pattern.0.window is 0"]),
        (["data.length=0"], ["data.length is 0", "at least 1"]),
        (["data.packing=tight"], ['data.packing is "tight"', "concat, best_fit, unpacked"]),
        (["data.objective.name=maske"], ["data.objective.name", "causal", "masked"]),
        (["model.attention.causal=false"], ["model.attention.causal is false", "causal would show"]),
        (["model.token_types=2"], ["model.token_types is 2", "objective causal"]),
        (["model.language_head=false"], ["model.language_head is false", "predicts tokens"]),
        (["data.objective.name=masked"], ["data.objective.name is masked", "bpe has no mask token"]),
        (MASKED[1:], ["model.attention.causal is true", "both of its sides"]),
        ([*MASKED, "data.objective.next_sentence=true"], ["model.token_types is 0", "model.heads.next_sentence"]),
        ([*MASKED, "model.convolution.size=513"], ["model.convolution.size is 513", "data.length 256"]),
        ([*MASKED, "data.objective.max_predictions=257"], ["max_predictions is 257", "256 tokens"]),
        ([*MASKED, "train.loss_chunks=8"], ["train.loss_chunks is 8", "data.objective.max_predictions 20"]),
        ([*MASKED, "data.tokenizer.vocab_size=4097"], ["model.vocab_size is 4096", "wordpiece has 4097"]),
        ([*MASKED, "data.tokenizer.max_characters=2046"], ["data.tokenizer.vocab_size is 4096", "4097 pieces"]),
        (["data.tokenizer.vocab_size=100"], ["data.tokenizer.vocab_size is 100", "257"]),
        (["data.tokenizer.vocab_size=4097"], ["model.vocab_size is 4096", "4097"]),
        (["data.tokenizer.name=bytes", "model.vocab_size=256"], ["model.vocab_size is 256", "257"]),
        (["data.source.name=text", "data.source.document=page"], ["data.source.document", "paragraph"]),
        (["data.source.name=text", "data.source.validation_fraction=1"], ["validation_fraction is 1.0"]),
        (["model.positions.name=learned", "data.length=1025"], ["data.length is 1025", "1024"]),
        (["optim.learning_rate=0"], ["optim.learning_rate is 0.0", "above 0"]),
        (["optim.optimizer.b2=1"], ["optim.optimizer.b2 is 1.0", "below 1"]),
        (["optim.optimizer.name=muon", "optim.optimizer.newton_schulz_steps=0"], ["newton_schulz_steps is 0"]),
        (["optim.schedule.final=2"], ["optim.schedule.final is 2.0", "at most 1"]),
        (["optim.schedule.warmup=1001"], ["optim.schedule.warmup is 1001", "train.steps 1000"]),
        (["optim.schedule.warmup=101%", "train.steps=2 epochs"], ["optim.schedule.warmup", "101%"]),
        (["optim.schedule.warmup=1e9 tokens"], ["optim.schedule.warmup", "1e9 tokens", "1000"]),
        (
            ["optim.schedule.name=wsd", "optim.schedule.warmup=50%", "optim.schedule.decay=501"],
            ["optim.schedule.decay is 501", "after the warm-up"],
        ),
        (["optim.schedule.name=inverse_sqrt", "optim.schedule.hold=101%"], ["optim.schedule.hold", "101%", "the run"]),
        (["optim.clip_norm=0"], ["optim.clip_norm is 0.0", "above 0"]),
        (["optim.ema_decay=1"], ["optim.ema_decay is 1.0", "below 1"]),
        (["optim.decay_kinds=kernel,norm"], ["optim.decay_kinds", "norm", "embedding"]),
        (['optim.groups=[{"pattern": "("}]'], ["optim.groups.0.pattern", '"("']),
        (["optim.groups=[{}]"], ["optim.groups.0.pattern is empty"]),
        (['optim.groups=[{"pattern": "a", "weight_decay": -1}]'], ["optim.groups.0.weight_decay is -1.0"]),
        (["train.steps=0"], ["train.steps is 0", "at least one step"]),
        (["train.steps=10%"], ["train.steps", "10%", "share of itself"]),
        (["train.batch_size=0"], ["train.batch_size is 0"]),
        (["train.accumulate=0"], ["train.accumulate is 0"]),
        (["train.accumulate=3"], ["train.accumulate is 3", "train.batch_size 8"]),
        (["train.seed=-1"], ["train.seed is -1"]),
        (["train.loss_chunks=3"], ["train.loss_chunks is 3", "data.length 256"]),
        (["train.max_bad_steps=0"], ["train.max_bad_steps is 0"]),
        (["mesh.fsdp=0"], ["mesh.fsdp is 0", "-1"]),
        (["mesh.fsdp=-2"], ["mesh.fsdp is -2", "-1"]),
        (["mesh.fsdp=-1"], ["mesh.fsdp is -1", "mesh.data"]),
        (["checkpoint.every=0"], ["checkpoint.every is 0"]),
        (["checkpoint.keep=0"], ["checkpoint.keep is 0"]),
        (["eval.every=0 tokens"], ["eval.every", "0 tokens"]),
        (["eval.batches=0"], ["eval.batches is 0"]),
        (["eval.ema=true"], ["eval.ema", "optim.ema_decay"]),
    ],
)
def test_what_cannot_be_is_refused(refused, overrides, parts):
    text = refused(*overrides)
    assert all(part in text for part in parts), text


def test_all_clashes_are_told_at_once(refused):
    text = refused("mesh.fsdp=0", "optim.learning_rate=0", "model.remat=some", "data.length=0")
    assert all(key in text for key in ("mesh.fsdp", "optim.learning_rate", "model.remat", "data.length"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.steps=2 epochs", "optim.schedule.warmup=2000"],  # how long an epoch is, only the store knows
        ["optim.schedule.name=wsd", "optim.schedule.warmup=50%", "optim.schedule.decay=500"],
        ["optim.schedule.warmup=1000", "train.steps=2048000 tokens"],
        ["model.positions.name=learned", "data.length=1024"],
        ["data.tokenizer.name=bytes", "model.vocab_size=257"],
        ["optim.ema_decay=0.999", "eval.ema=true"],
        ["optim.decay_kinds="],
        [*MASKED, "data.objective.copies=none", "train.loss_chunks=4"],
        [
            *(*MASKED, "data.objective.next_sentence=true", "model.token_types=2"),
            *("model.heads.pooler=true", "model.heads.next_sentence=true"),
        ],
    ],
)
def test_what_can_be_is_not_refused(refused, overrides):
    load(refused.path, [f"--config.{override}" for override in overrides])


def numbers(hint, path=""):
    """Paths of the fields of `hint` that hold numbers."""
    found = []
    for variant in variants(hint) or variants(entry_hint(hint)):
        for key, item in hints(variant).items():
            name = f"{path}.{key}".lstrip(".")
            deeper = entry_hint(item) is not None and variants(entry_hint(item))
            if variants(item) or deeper:
                found += numbers(item, f"{name}.*" if deeper else name)
            elif entry_hint(item) is None and scalar_types(item)[0] & {int, float} and str not in scalar_types(item)[0]:
                found.append(name)
    return found


def test_every_number_outside_the_model_has_a_rule_or_is_checked_apart():
    """So that a new field cannot be forgotten: a number without limits has to be entered here."""
    from data.config import RULES as DATA_RULES

    ruled = {*RULES, *(f"data.{path}" for path in DATA_RULES)}
    fields = {path for path in numbers(Config) if not path.startswith("model.")}
    assert fields - ruled == set()
    assert ruled <= set(leaves(Config)), "a rule for a field that is not there holds nothing"


def test_parameter_kinds_are_the_models():
    assert PARAMETER_KINDS == KINDS


def test_inputs_are_asked_for_apart():
    """So that sizes and dry runs of a recipe need no text."""
    config = Config(data=replace(Config().data, source=TextSource(), tokenizer=FileTokenizer()))
    check(config)
    assert [key for key, _ in missing_inputs(config.data)] == ["source.paths", "tokenizer.path"]
    assert not missing_inputs(Config().data)


def test_the_saved_configuration_starts_the_same_run(refused, tmp_path):
    config = load(refused.path, ["--config.optim.optimizer.name=muon", "--config.train.steps=1e6 tokens"])
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(settings.to_plain(config)))
    assert load(str(saved)) == config
    assert load(str(saved), ["--config.train.seed=3"]) == replace(config, train=replace(config.train, seed=3))


def sized(data=-1, fsdp=1, tensor=1, expert=1, batch_size=8, accumulate=1):
    train = replace(Config().train, batch_size=batch_size, accumulate=accumulate)
    return replace(Config(), train=train, mesh=Mesh(data, fsdp, tensor, expert))


@pytest.mark.parametrize(
    ("config", "devices", "sizes"),
    [
        (sized(), 1, (1, 1, 1, 1)),
        (sized(), 8, (8, 1, 1, 1)),
        (sized(fsdp=2, tensor=2), 8, (2, 2, 2, 1)),
        (sized(data=1, fsdp=-1), 4, (1, 4, 1, 1)),
        (sized(tensor=-1, data=2), 8, (2, 1, 4, 1)),
        (sized(data=2), 8, (2, 1, 1, 1)),  # a mesh on purpose smaller than the machine
        (sized(batch_size=16, accumulate=2), 8, (8, 1, 1, 1)),
        (sized(data=2, expert=-1), 8, (2, 1, 1, 4)),
    ],
)
def test_a_mesh_that_fits_is_resolved(config, devices, sizes):
    found = check_devices(config, devices)
    assert tuple(found.values()) == sizes and list(found) == ["data", "fsdp", "tensor", "expert"]
    assert math.prod(sizes) <= devices


@pytest.mark.parametrize(
    ("config", "devices", "parts"),
    [
        (sized(data=4, fsdp=4), 8, ("mesh", "16 devices", "has 8")),
        (sized(data=4), 1, ("mesh", "4 devices", "has 1")),
        (sized(fsdp=3), 8, ("mesh.data is -1", "3 do not divide")),
        (sized(), 6, ("train.batch_size is 8", "6 devices", "multiple of 6")),
        (sized(accumulate=2), 8, ("train.batch_size is 8", "4 rows", "multiple of 16")),
        (sized(data=4, fsdp=2, batch_size=4), 8, ("train.batch_size is 4", "= 8 devices")),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(config, devices, parts):
    with pytest.raises(ConfigError) as caught:
        check_devices(config, devices)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_the_dataclasses_are_frozen():
    def classes(hint):
        for variant in variants(hint):
            yield variant
            for item in hints(variant).values():
                yield from classes(entry_hint(item) or item)

    assert [found.__name__ for found in classes(Config) if not found.__dataclass_params__.frozen] == []
