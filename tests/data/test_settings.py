"""Recipes and overrides: what is read is what was written, and everything else is refused in one paragraph."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from data import cli, schema, settings
from data.errors import ConfigError, DataError, StorageError

Duration = int | str


@dataclass(frozen=True)
class Red:
    name: str = "red"
    depth: float = 0.5
    shade: int = 1


@dataclass(frozen=True)
class Blue:
    name: str = "blue"
    depth: float = 0.25


@dataclass(frozen=True)
class Entry:
    window: int | None = None
    color: Red | Blue = Red()


@dataclass(frozen=True)
class Left:
    count: int = 3
    rate: float = 0.1
    cap: float | None = 1.0
    on: bool = True
    label: str = "a"
    note: str | None = None
    every: Duration = 500
    keep: Duration | None = None
    files: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    color: Red | Blue = Blue()


@dataclass(frozen=True)
class Right:
    entries: tuple[Entry, ...] = (Entry(),)
    rate: float = 0.2


@dataclass(frozen=True)
class Tree:
    left: Left = Left()
    right: Right = Right(rate=0.3)


RECIPE = """
from data import settings
{imports}
def get_config(arg=None):
    config = settings.to_config_dict(Tree())
    {body}
    return config
"""


@pytest.fixture
def recipe(tmp_path, request):
    """Writes a recipe whose body is given, and returns its path."""

    def write(body: str = "pass") -> str:
        imports = f"import sys; m = sys.modules[{__name__!r}]; Tree, Red, Blue, Entry = m.Tree, m.Red, m.Blue, m.Entry"
        path = tmp_path / "recipe.py"
        path.write_text(RECIPE.format(imports=imports, body=body))
        return str(path)

    return write


def load(spec: str, *overrides: str):
    return settings.load(spec, [f"--config.{override}" for override in overrides], Tree)


def refusal(spec: str, *overrides: str) -> str:
    """The one paragraph with which a recipe or an override is refused."""
    with pytest.raises(ConfigError) as caught:
        load(spec, *overrides)
    text = str(caught.value)
    assert "\n" not in text and caught.value.exit_code == 2
    return text


def test_a_recipe_that_sets_nothing_is_the_defaults(recipe):
    assert load(recipe()) == Tree()


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("left.count=1e3", "left", "count", 1000),
        ("left.count=1_000", "left", "count", 1000),
        ("left.count=-2", "left", "count", -2),
        ("left.rate=3", "left", "rate", 3.0),
        ("left.rate=1e-3", "left", "rate", 1e-3),
        ("left.cap=none", "left", "cap", None),
        ("left.cap=null", "left", "cap", None),
        ("left.cap=2", "left", "cap", 2.0),
        ("left.on=false", "left", "on", False),
        ("left.on=True", "left", "on", True),
        ("left.label=none", "left", "label", "none"),
        ("left.label=", "left", "label", ""),
        ("left.label=a=b", "left", "label", "a=b"),
        ("left.note=3", "left", "note", "3"),
        ("left.every=1e3", "left", "every", 1000),
        ("left.every=1e6 tokens", "left", "every", "1e6 tokens"),
        ("left.every=2.5 epochs", "left", "every", "2.5 epochs"),
        ("left.keep=10%", "left", "keep", "10%"),
        ("left.keep=none", "left", "keep", None),
        ("left.files=a*.txt,b.txt", "left", "files", ("a*.txt", "b.txt")),
        ('left.files=["a,b", "c"]', "left", "files", ("a,b", "c")),
        ("left.files=", "left", "files", ()),
        ("left.sizes=3,4,5", "left", "sizes", (3, 4, 5)),
        ("right.entries.0.window=128", "right", "entries", (Entry(window=128),)),
        ("right.entries.0.color.shade=4", "right", "entries", (Entry(color=Red(shade=4)),)),
        ('right.entries=[{"window": 4}, {}]', "right", "entries", (Entry(window=4), Entry())),
        ("right.entries=[]", "right", "entries", ()),
        ('left.color={"name": "red", "shade": 2}', "left", "color", Red(shade=2)),
    ],
)
def test_an_override_is_read_by_the_declared_type(recipe, override, section, field, value):
    config = load(recipe(), override)
    found = getattr(getattr(config, section), field)
    assert found == value and type(found) is type(value)
    part = dataclasses.replace(getattr(Tree(), section), **{field: value})
    assert config == dataclasses.replace(Tree(), **{section: part})


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("left.count=3.5", ("left.count", "3.5", "an integer")),
        ("left.count=true", ("left.count", "true", "an integer")),
        ("left.count=none", ("left.count", "none", "an integer")),
        ("left.count=1e99", ("left.count", "an integer")),
        ("left.count=1e999999999", ("left.count", "an integer")),
        ("left.rate=nan", ("left.rate", "nan", "a finite number")),
        ("left.rate=1e999", ("left.rate", "a finite number")),
        ("left.rate=fast", ("left.rate", "fast", "a finite number")),
        ("left.on=1", ("left.on", "1", "true or false")),
        ("left.every=3.5", ("left.every", "3.5", "2 epochs")),
        ("left.every=1.5 steps", ("left.every", "whole number")),
        ("left.every=-1", ("left.every", "-1", "number of steps")),
        ("left.every=5 minutes", ("left.every", "5 minutes", "epochs")),
        ("left.sizes=1,x", ("left.sizes.1", "x", "an integer")),
        ("left.files=[a", ("left.files", "[a", "JSON")),
        ("left.label.x=1", ("left.label", "no field x")),
        ("left=1", ("left", "1", "mapping")),
        ("left.cuont=1", ("left.cuont", "left.count?")),
        ("lfet.count=1", ("lfet", "left?")),
        ("shade=1", ("shade", "left.color.shade?")),
        ("right.count=1", ("right.count", "left.count?")),
        ("left.color.shade=2", ("left.color.shade", "blue", "red", "left.color.name")),
        ("left.color.name=rde", ("left.color.name", "rde", "red, blue", "red?")),
        ('left.color={"shade": 2}', ("left.color.name", "red, blue")),
        ("right.entries.1.window=3", ("right.entries", "1 entries", "no entry 1")),
        ("right.entries.x=3", ("right.entries", "no entry x")),
        ('right.entries=[{"widow": 4}]', ("right.entries.0.widow", "right.entries.0.window?")),
        ("left..count=3", ("left..count", "empty key")),
        ("left.count", ("--config.left.count=value", "no value")),
    ],
)
def test_an_override_that_cannot_be_names_key_value_and_way_out(recipe, override, parts):
    text = refusal(recipe(), override)
    assert all(part in text for part in (f"--config.{override.partition('=')[0]}", *parts)), text


def test_choices_are_switched_whatever_the_order_of_overrides(recipe):
    switched = dataclasses.replace(Tree(), left=Left(color=Red(shade=7, depth=0.75)))
    given = ["left.color.shade=7", "left.color.name=red", "left.color.depth=0.75"]
    assert load(recipe(), *given) == load(recipe(), *reversed(given)) == switched
    whole = 'right.entries=[{}, {"window": 3}]'
    nested = ["right.entries.1.color.depth=0.5", "right.entries.1.color.name=blue", whole]
    assert load(recipe(), *nested).right.entries == (Entry(), Entry(3, Blue(depth=0.5)))


def test_naming_the_variant_that_is_there_keeps_its_fields(recipe):
    assert load(recipe("config.left.color.depth = 0.9"), "left.color.name=blue").left.color == Blue(depth=0.9)


def test_a_field_given_twice_is_refused_unless_the_values_agree(recipe):
    assert "left.count" in refusal(recipe(), "left.count=1", "left.count=2")
    assert load(recipe(), "left.count=1", "left.count=1").left.count == 1


@pytest.mark.parametrize(
    ("argument", "part"), [("train", "'train'"), ("--count=3", "left.count?"), ("--config.left.count", "=value")]
)
def test_stray_arguments_are_refused(recipe, argument, part):
    with pytest.raises(ConfigError) as caught:
        settings.load(recipe(), [argument], Tree)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("config.left.color.name = 'red'; config.left.color.shade = 5", Left(color=Red(shade=5))),
        ("config.left.color = Red(shade=5)", Left(color=Red(shade=5))),
        ("config.left.color = {'name': 'red'}", Left(color=Red())),
        ("config.left.cap = None; config.left.keep = '10%'", Left(cap=None, keep="10%")),
        ("config.left.note = 'x'; config.left.files = ['a']", Left(note="x", files=("a",))),
        ("config.left.every = '2 epochs'; config.left.rate = 1", Left(every="2 epochs", rate=1.0)),
        ("config.left.update(count=4)", Left(count=4)),
        ("config.left.rate = config.right.get_ref('rate') * 2", Left(rate=0.6)),
    ],
)
def test_a_recipe_sets_what_differs(recipe, body, left):
    assert load(recipe(body)) == dataclasses.replace(Tree(), left=left)


def test_a_recipe_sets_tuples_of_sections(recipe):
    body = "config.right.entries = (Entry(window=8, color=Blue()), {'window': 4})"
    assert load(recipe(body)).right.entries == (Entry(8, Blue()), Entry(4))


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("config.left.cuont = 1", ("line 6", "left.cuont", "left.count?")),
        ("config.lfet.count = 1", ("line 6", "lfet", "left?")),
        ("config.left.count = '3'", ("line 6", "left.count", '"3"', "an integer")),
        ("config.left.count = 3.5", ("line 6", "left.count", "3.5", "an integer")),
        ("config.left.count = True", ("line 6", "left.count", "true", "an integer")),
        ("config.left.on = 1", ("line 6", "left.on", "true or false")),
        ("config.left.count = None", ("line 6", "left.count", "null", "an integer")),
        ("config.left.every = 'soon'", ("line 6", "left.every", "soon")),
        ("config.left.color.shade = 3", ("line 6", "left.color.shade", "red")),
        ("config.left.color.depth = 1.0; config.left.color.name = 'red'", ("left.color.depth", "name first")),
        ("config.left.color = Entry()", ("left.color", "Entry", "Red or Blue")),
        ("config.left.color.name = 'rde'", ("left.color.name", "rde", "red?")),
        ("config.right.entries = (Entry(window='x'),)", ("right.entries.0.window", '"x"', "an integer")),
        ("with config.unlocked(): config.left.extra = 1", ("left.extra",)),
        ("raise ValueError('the size is 9b, must be one of 1b, 8b')", ("line 6", "9b", "1b, 8b")),
        ("1 / 0", ("line 6", "ZeroDivisionError")),
        ("import nosuchmodule", ("line 6", "nosuchmodule")),
        ("return 3", ("ConfigDict", "int")),
        ("return Tree()", ("ConfigDict", "Tree")),
        ("a b", ("line 6", "SyntaxError")),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_at_its_line(recipe, body, parts):
    spec = recipe(body)
    text = refusal(spec)
    assert all(part in text for part in (spec, *parts)), text


def test_files_that_hold_no_configuration_are_refused(tmp_path):
    for name, content, part in (
        ("empty.py", "", "get_config"),
        ("plain.py", "def get_config(): pass", "takes no argument"),
        ("list.json", "[]", "list"),
        ("cut.json", '{"left": ', "JSON"),
        ("twice.json", '{"left": {"count": 1, "count": 2}}', "twice"),
        ("deep.json", '{"left": {"cuont": 1}}', "left.count?"),
        ("nan.json", '{"left": {"rate": NaN}}', "finite"),
        ("latin.json", b"\xff", "cannot be read"),
    ):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        text = refusal(f"{path}:x" if name == "plain.py" else str(path))
        assert str(path) in text and part in text, text
    assert "takes no argument" in refusal(f"{tmp_path}/list.json:x")
    assert "empty.py?" in refusal(f"{tmp_path}/empt.py")
    assert "FILE.py" in refusal(f"{tmp_path}/recipe.yaml")


def test_a_recipe_gets_its_argument_and_leaves_nothing_beside_itself(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    spec = recipe("config.left.label = str(arg)")
    assert load(spec).left.label == "None"
    assert load(f"{spec}:124m").left.label == "124m"
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.py"]


def test_other_sections_are_left_out_only_on_request(recipe):
    @dataclass(frozen=True)
    class Part:
        right: Right = Right()

    def part(overrides):
        return settings.load(recipe("config.right.rate = 0.5"), overrides, Part, ignore_other_sections=True)

    assert part(["--config.left.count=1"]) == Part(Right(rate=0.5))
    with pytest.raises(ConfigError, match="right"):
        part(["--config.rihgt.rate=1"])
    with pytest.raises(ConfigError, match="left"):
        settings.load(recipe(), [], Part)


CHANGED = Tree(
    Left(cap=None, note="ü\n", every="10%", files=("a", "b"), color=Red(shade=3)),
    Right(entries=(Entry(window=2, color=Blue()), Entry())),
)


@pytest.mark.parametrize("tree", [Tree(), CHANGED, Tree(right=Right(entries=()))])
def test_json_config_dict_and_recipe_hold_the_same_tree(tree, tmp_path):
    plain = settings.to_plain(tree)
    assert settings.from_plain(Tree, json.loads(json.dumps(plain))) == tree
    path = tmp_path / "config.json"
    path.write_text(json.dumps(plain))
    assert load(str(path)) == tree
    assert settings.from_plain(Tree, settings.to_config_dict(tree).to_dict()) == tree


def test_a_part_of_a_tree_is_completed_with_defaults():
    part = {"left": {"color": {"depth": 0.5}, "count": 1e3}}
    assert settings.from_plain(Tree, part) == Tree(Left(color=Blue(depth=0.5), count=1000))
    assert settings.from_plain(Tree, {"right": {"entries": []}}) == Tree(right=Right(entries=(), rate=0.3))


def test_every_line_of_a_dump_is_an_override_that_rebuilds_it(recipe):
    lines = settings.dumps(dataclasses.replace(CHANGED, right=Right(entries=(Entry(window=2),)))).splitlines()
    given = []
    for line in lines:
        path, _, value = line.partition(" = ")
        plain = json.loads(value)
        given.append(f"{path}={plain if isinstance(plain, str) else value}")
    config = load(recipe(), *given)
    assert config == dataclasses.replace(CHANGED, right=Right(entries=(Entry(window=2),)))


def test_a_dump_is_in_the_order_of_declaration():
    text = settings.dumps(Tree(right=Right(entries=(Entry(),))))
    assert text.startswith('left.count = 3\nleft.rate = 0.1\nleft.cap = 1.0\nleft.on = true\nleft.label = "a"\n')
    assert text.endswith("right.entries.0.color.shade = 1\nright.rate = 0.2\n")


def test_the_hash_sees_every_value_and_nothing_else(recipe):
    assert settings.config_hash(load(recipe())) == settings.config_hash(Tree())
    assert settings.config_hash(load(recipe(), "left.rate=1")) == settings.config_hash(Tree(Left(rate=1.0)))
    variants = [Tree(), CHANGED, Tree(Left(count=4)), Tree(Left(color=Red())), Tree(right=Right(entries=()))]
    assert len({settings.config_hash(tree) for tree in variants}) == len(variants)
    assert settings.config_hash(Tree()) == "9aba2ed591"


LEAVES = """\
left.count
left.rate
left.cap
left.on
left.label
left.note
left.every
left.keep
left.files
left.sizes
left.color.name
left.color.depth
left.color.shade
right.entries.*.window
right.entries.*.color.name
right.entries.*.color.depth
right.entries.*.color.shade
right.rate
"""


def test_leaves_name_every_field_of_every_variant():
    assert "".join(f"{leaf}\n" for leaf in settings.leaves(Tree)) == LEAVES


def test_a_type_that_no_field_can_have_is_a_bug():
    with pytest.raises(TypeError, match="dict"):
        schema.scalar_types(dict[str, int])


@pytest.mark.parametrize(
    ("raised", "code", "part"),
    [
        (ConfigError("left.count is\n 3"), 2, "error: left.count is 3\n"),
        (DataError("no text"), 3, "error: no text\n"),
        (StorageError("full"), 6, "error: full\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b"), 6, "error: /a/b cannot be written"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/a/b"), 6, "error: /a/b"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "/a/b"), 6, "error: /a/b"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_expected_failures_end_with_a_paragraph_and_their_code(raised, code, part, capsys):
    def main(arguments):
        raise raised

    assert cli.exit_code(main, []) == code
    printed = capsys.readouterr()
    assert printed.err.startswith(part) and printed.err.count("\n") <= 1 and not printed.out


def test_bugs_keep_their_traceback():
    def main(arguments):
        raise arguments

    for bug in (KeyError("x"), FileNotFoundError(errno.ENOENT, "gone", "/a")):
        with pytest.raises(type(bug)):
            cli.exit_code(main, bug)


@pytest.mark.parametrize(("body", "code"), [("return None", 0), ("return 75", 75), ("raise ConfigError('no')", 2)])
def test_a_command_ends_with_its_code(body, code):
    program = f"from data.cli import run_command\nfrom data.errors import ConfigError\ndef main(a):\n    {body}\n"
    command = [sys.executable, "-c", program + "run_command(main)"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=settings.__file__.rsplit("/data/", 1)[0])
    assert (done.returncode, done.stderr) == (code, "error: no\n" if code == 2 else "")


@pytest.mark.parametrize(
    ("body", "reader", "out"),
    [("for _ in range(99999): print('line')", "head -1", "line\n"), ("time.sleep(0.5); print('late')", "true", "")],
)
def test_a_reader_that_leaves_is_no_error(body, reader, out):
    """Neither while the command writes nor where its last lines are still in the buffer."""
    program = f"import time\nfrom data.cli import run_command\ndef main(a):\n    {body}\nrun_command(main)"
    command = f'"{sys.executable}" -c "$PROGRAM" | {reader}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=settings.__file__.rsplit("/data/", 1)[0],
        env={**os.environ, "PROGRAM": program, "PYTHONUNBUFFERED": ""},
    )
    assert (done.returncode, done.stdout, done.stderr) == (141, out, "")
