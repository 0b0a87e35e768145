"""On resume every field is free, schedule or fixed, and each kind was chosen, not forgotten."""

from dataclasses import replace

import pytest

from data.errors import ConfigError
from data.schema import leaves, to_plain
from data.source_config import TextSource
from model.config import Layer, Model
from train.config import Config, Constant, Lion, WarmupStableDecay
from train.resume import ABSENT, KINDS, Change, changes, check_resume, kind

BASE = Config()


def changed(section: str, **fields) -> dict:
    return to_plain(replace(BASE, **{section: replace(vars(BASE)[section], **fields)}))


def test_every_field_that_may_change_is_a_golden_line(golden):
    lines = [f"{kind(leaf):8} {leaf}\n" for leaf in leaves(Config) if kind(leaf) != "fixed"]
    golden("not_fixed.txt", "".join(lines))


def test_every_entry_of_the_table_holds_for_a_field():
    for prefix in KINDS:
        assert any(leaf == prefix or leaf.startswith(f"{prefix}.") for leaf in leaves(Config)), prefix


def test_a_field_whose_name_only_begins_alike_is_fixed():
    assert kind("train.steps") == "schedule" and kind("train.steps_of_a_later_version") == "fixed"


def test_the_same_configuration_has_no_changes():
    assert changes(to_plain(BASE), to_plain(BASE)) == []
    assert check_resume(to_plain(BASE), to_plain(BASE)) == []


@pytest.mark.parametrize(
    "given",
    [
        changed("checkpoint", every=7, keep=1, best="eval/validation/loss"),
        changed("eval", every="1 epoch", batches=2),
        changed("log", tensorboard=False, wandb="project"),
        changed("mesh", data=2, fsdp=2),
        changed("data", prefetch=8, timeout=1.0, cache_dir="elsewhere", verify=False),
        changed("model", remat="full", unroll=2, attention=replace(BASE.model.attention, kernel="reference")),
        changed("train", hang_timeout=1.0, loss_chunks=2, deterministic=False, init_from="runs/other"),
    ],
)
def test_free_fields_change_in_silence(given):
    found = changes(to_plain(BASE), given)
    assert found and {change.kind for change in found} == {"free"}
    assert check_resume(to_plain(BASE), given) == []


def test_text_may_lie_elsewhere():
    def source(**fields):
        return to_plain(replace(BASE, data=replace(BASE.data, source=TextSource(**fields))))

    assert check_resume(source(paths=("a",)), source(paths=("b", "c"), validation_paths=("d",))) == []
    with pytest.raises(ConfigError, match=r"data.source.document was \"file\", now \"line\""):
        check_resume(source(), source(document="line"))


def test_schedule_fields_are_printed_old_to_new():
    train, optim = replace(BASE.train, steps=2000, accumulate=2), replace(BASE.optim, learning_rate=1e-4)
    optim = replace(optim, clip_norm=None, optimizer=replace(optim.optimizer, weight_decay=0.2))
    assert check_resume(to_plain(BASE), to_plain(replace(BASE, train=train, optim=optim))) == [
        "optim.optimizer.weight_decay: 0.1 -> 0.2",
        "optim.learning_rate: 0.0003 -> 0.0001",
        "optim.clip_norm: 1.0 -> null",
        "train.steps: 1000 -> 2000",
        "train.accumulate: 1 -> 2",
    ]


def test_another_schedule_shows_the_fields_that_come_and_go():
    lines = check_resume(to_plain(BASE), changed("optim", schedule=WarmupStableDecay()))
    assert lines == [
        'optim.schedule.name: "cosine" -> "wsd"',
        'optim.schedule.decay: null -> "20%"',
        "optim.schedule.final: 0.1 -> 0.0",
    ]
    assert check_resume(changed("optim", schedule=WarmupStableDecay()), changed("optim", schedule=Constant())) == [
        'optim.schedule.name: "wsd" -> "constant"',
        'optim.schedule.warmup: "1%" -> 0',
        'optim.schedule.decay: "20%" -> absent',
        "optim.schedule.final: 0.0 -> absent",
    ]


@pytest.mark.parametrize(
    ("given", "path", "saved", "now"),
    [
        (changed("model", num_layers=5), "model.num_layers", "4", "5"),
        (changed("model", dtype="bfloat16"), "model.dtype", '"float32"', '"bfloat16"'),
        (changed("model", pattern=(Layer(), Layer(window=8))), "model.pattern.1.window", "absent", "8"),
        (changed("data", length=128), "data.length", "256", "128"),
        (changed("data", shuffle=False), "data.shuffle", "true", "false"),
        (changed("data", packing="unpacked"), "data.packing", '"concat"', '"unpacked"'),
        (changed("data", source=TextSource()), "data.source.name", '"tfds"', '"text"'),
        (changed("optim", optimizer=Lion()), "optim.optimizer.name", '"adamw"', '"lion"'),
        (changed("optim", ema_decay=0.9), "optim.ema_decay", "null", "0.9"),
        (changed("train", seed=1), "train.seed", "0", "1"),
        (changed("train", batch_size=16), "train.batch_size", "8", "16"),
    ],
)
def test_fixed_fields_are_refused_with_both_values(given, path, saved, now):
    with pytest.raises(ConfigError) as caught:
        check_resume(to_plain(BASE), given)
    assert f"{path} was {saved}, now {now}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_fixed_field_is_refused_also_among_others():
    given = to_plain(replace(BASE, train=replace(BASE.train, seed=1, steps=3), model=replace(Model(), num_layers=1)))
    with pytest.raises(ConfigError, match="model.num_layers was 4, now 1; train.seed was 0, now 1") as caught:
        check_resume(to_plain(BASE), given)
    assert "train.steps" not in str(caught.value)


def test_a_field_that_the_saved_run_did_not_know_counts_as_its_default():
    saved = to_plain(BASE)
    del saved["train"]["z_loss"]
    assert check_resume(saved, to_plain(BASE)) == []
    with pytest.raises(ConfigError, match="train.z_loss was 0.0, now 0.1"):
        check_resume(saved, changed("train", z_loss=0.1))


def test_changes_name_path_values_and_kind():
    found = changes(to_plain(BASE), changed("model", pattern=(Layer(), Layer())))
    assert Change("model.pattern.1.window", ABSENT, None, "fixed") in found
