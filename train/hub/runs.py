"""Published models to run directories and back: what `train.convert` does, once its arguments are read.

Everything is checked before anything is written; what is written lies beside its place until it is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import model.checks
from data import settings, tokenizer, tokenizer_formats
from data.config import Data
from data.errors import ConfigError, DataError
from data.files import storage_errors, sync
from data.loader import DATA_ORDER_VERSION
from data.objective_config import CausalObjective, MaskedObjective, Objective, Seq2SeqObjective
from data.schema import config_hash, from_plain, to_plain
from data.tokenizer_config import FileTokenizer
from model.config import Model
from model.hub.families import FAMILIES, context, expressing, family_of, from_config, to_config
from model.hub.family import Family, HubError
from model.replaced import DISCRIMINATOR, GENERATOR, discriminator, generator, shared
from model.transformer import Transformer, initialise
from train import checkpoint, mesh
from train.assembly import INITIAL_STREAM
from train.checkpoint import Checkpointer
from train.checks import value_problems
from train.config import Config
from train.errors import CheckpointError
from train.hub import tokenizer_files
from train.hub.exporter import export_tensors, tensor_shapes
from train.hub.importer import by_path, declared, listing, match, read_params
from train.hub.safetensors import Writer
from train.hub.source import Source, open_source
from train.hub.tokenizer_files import write_json
from train.rundir import environment, read_json
from train.session import NO_DATA, Counters
from train.state import State


def import_run(hf: Path, workdir: Path, overrides: Sequence[str], initialise_heads: bool) -> list[str]:
    """Make the run directory `workdir` of a published model; returns lines for its user.

    ConfigError: an occupied `workdir`, overrides or a mesh that cannot be; DataError: a source that is malformed
    or does not fit.
    """
    with place_for(workdir, "--workdir") as building:
        source = open_source(hf)
        config = configuration(source, workdir, overrides)
        family, tree = family_of(source.config), declared(config.model)
        devices = mesh.make_mesh(config.mesh)
        mesh.check_mesh(tree, devices.size, mesh.RULES, devices)
        shardings = mesh.param_shardings(tree, mesh.RULES, devices)
        matched = match(family, config.model, tree, source.tensors, initialise_heads)
        fresh = partial(initial_values, config, by_path(shardings))
        building.mkdir()
        save(building, config, source, read_params(matched, config.model, tree, shardings, fresh))
    lines = [*source.notes]
    if matched.missing_heads:
        lines.append(f"initialised with seed {config.train.seed}: {listing(matched.missing_heads)}")
    if matched.unused:
        lines.append(f"left out, of heads that the model does not have: {listing(matched.unused)}")
    return lines


@contextlib.contextmanager
def place_for(target: Path, argument: str) -> Iterator[Path]:
    """A path beside `target` to build at, which becomes `target` when the block ends well and nothing otherwise."""
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{argument} is {target}, which is there and not empty; give another one, or remove it.")
    made = [place for place in target.parents if not place.exists()]
    with storage_errors(target, "make"):
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield beside / "whole"
        with storage_errors(target, "make"):
            os.rename(beside / "whole", target)
            sync(target.parent)
            made = []
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()


def configuration(source: Source, workdir: Path, overrides: Sequence[str]) -> Config:
    """The complete configuration of an imported run: model and tokenizer of the source, then the overrides."""
    try:
        published = from_config(source.config, source.tensors)
        length = context(source.config)
        from_plain(Config, to_plain(Config(model=published, data=Data() if length is None else Data(length=length))))
    except (HubError, ConfigError) as error:
        raise DataError(f"{source.path} cannot be imported: {error}.") from error
    path = "" if source.tokenizer is None else str(workdir / "tokenizer.json")
    data = Data(
        tokenizer=FileTokenizer(path=path, end_of_text=source.end_of_text, stop=source.stop),
        objective=objective_of(published),
    )
    data = data if length is None else replace(data, length=length)
    with tempfile.TemporaryDirectory() as directory:
        spec = Path(directory) / "config.json"
        spec.write_text(json.dumps(to_plain(Config(model=published, data=data))))
        config = settings.load(str(spec), overrides, Config)
    problems = [(f"model.{key}", clash) for key, clash in model.checks.check(config.model)] + value_problems(config)
    if config.data.tokenizer != replace(data.tokenizer, lowercase=config.data.tokenizer.lowercase):
        problems.append(("data.tokenizer", "is the source's, of which only lowercase can be another"))
    if config.model.generator_layers:
        clash = f"is {config.model.generator_layers}, but a published model comes without a generator; set it to 0"
        problems.append(("model.generator_layers", clash))
    if problems:
        raise ConfigError("; ".join(f"{key} {clash}" for key, clash in problems))
    return config


def objective_of(published: Model) -> Objective:
    """What a run that begins from a published model would train it on."""
    if published.encoder_layers:
        return Seq2SeqObjective()
    if published.attention.causal:
        return CausalObjective()
    return MaskedObjective(next_sentence=published.heads.next_sentence)


def initial_values(config: Config, shardings: dict, paths: list[str]) -> dict:
    """`{path: array}` of parameters as a fresh run would have them."""

    def draw():
        key = jax.random.fold_in(jax.random.key(config.train.seed), INITIAL_STREAM)
        whole = by_path(nn.meta.unbox(initialise(Transformer(config.model), key)))
        return {path: whole[path] for path in paths}

    return jax.jit(draw, out_shardings={path: shardings[path] for path in paths})()


def save(directory: Path, config: Config, source: Source, params: dict) -> None:
    """Write a run of the parameters: step 0, without an optimizer's state, which an imported model does not have."""
    fingerprint = NO_DATA
    with storage_errors(directory, "write"):
        if source.tokenizer is not None:
            setting, content = config.data.tokenizer, source.tokenizer
            if setting.lowercase is not None:
                content = tokenizer_formats.cased(source.path, content, setting.lowercase)
            write_json(directory / "tokenizer.json", content)
            made = tokenizer.load(directory / "tokenizer.json", setting.end_of_text, setting.lowercase, setting.stop)
            fingerprint = made.fingerprint
    save_weights(directory, config, fingerprint, params)


def save_weights(
    directory: Path, config: Config, tokenizer_fingerprint: str, params: dict, step: int = 0, notes: dict | None = None
) -> None:
    """Write what makes `directory` the run of a configuration and its parameters, without an optimizer's state.

    `notes` are kept in the checkpoint's metadata.
    """
    with storage_errors(directory, "write"):
        for name, value in (("config.json", to_plain(config)), ("environment.json", environment())):
            write_json(directory / name, value)
    state = State(
        params=params, frozen={}, opt_state={}, ema={}, step=jnp.int32(step), skipped=jnp.zeros((), jnp.int32)
    )
    metadata = {
        "config_hash": config_hash(config),
        "config": to_plain(config),
        "data_order": DATA_ORDER_VERSION,
        "store_fingerprint": NO_DATA,
        "tokenizer_fingerprint": tokenizer_fingerprint,
        **vars(Counters()),
        **(notes or {}),
    }
    checkpointer = Checkpointer(directory / "checkpoints", keep=1)
    checkpointer.save(step, state, metadata, {})
    checkpointer.close()


def export_run(
    run: Path, hf: Path, family: str | None, dtype: str, max_shard_bytes: int, length: int | None = None
) -> list[str]:
    """Write the newest checkpoint of `run` in the Hugging Face layout; returns lines for its user.

    `length`: the longest context that it is to claim, in tokens; None: the rows it was trained on.

    ConfigError: no run, an occupied `hf`, a model that `family` (None: any) cannot express.
    """
    plain = read_json(run / "config.json")
    if plain is None:
        raise ConfigError(f"--run is {run}, which holds no run: it has no config.json.")
    config = from_plain(Config, plain)
    kept = discriminator(config.model)  # of a run that finds replaced tokens
    tree, length = by_path(declared(kept)), length or kept.max_length or config.data.length
    try:
        chosen, published = expression(kept, family, length, list(tree))
    except HubError as error:
        raise ConfigError(f"{run} cannot be exported: {error}.") from error
    folder, leaf = kept_parameters(run, config.model, tree)
    with place_for(hf, "--hf") as building:
        building.mkdir()
        end = end_of_text(run, config)
        stops = getattr(config.data.tokenizer, "stop", None)
        ids = tokenizer_files.write(run, building, end, stops, length)
        if kept.encoder_layers and "bos_token_id" in ids:
            ids["decoder_start_token_id"] = ids["bos_token_id"]
        published |= ids | {"torch_dtype": dtype}
        writer = Writer(building, tensor_shapes(chosen, kept, tree), dtype, max_shard_bytes)
        writer.write(export_tensors(chosen, kept, tree, leaf))
        with storage_errors(building / "config.json", "write"):
            write_json(building / "config.json", published)
    return [
        f"{chosen.model_type}, {dtype}, {len(writer.shards)} file(s), from {folder}",
        f"its longest context is said to be {length} tokens; --length says otherwise",
    ]


def expression(model: Model, family: str | None, length: int, paths: list[str]) -> tuple[Family, dict]:
    """The family of an export and its config.json: the one asked for, or the first that can."""
    if family is None:
        return expressing(model, length, paths)
    if family not in FAMILIES:
        raise ConfigError(f"--family is {family}, must be one of {', '.join(FAMILIES)}.")
    return FAMILIES[family], to_config(model, FAMILIES[family], length, paths)


def end_of_text(run: Path, config: Config) -> str | None:
    """The token that begins a document, of a decoder that has a tokenizer."""
    if not config.model.attention.causal or not (run / "tokenizer.json").exists():
        return None
    setting = config.data.tokenizer
    given = setting.end_of_text if isinstance(setting, FileTokenizer) else None
    return tokenizer.load(run / "tokenizer.json", given).end_of_text_token


def kept_parameters(run: Path, model: Model, tree: dict) -> tuple[Path, Callable[[str], np.ndarray]]:
    """`saved_parameters` of the model that a run is for: of a generator and a discriminator that is the second.

    The discriminator's embeddings are then those of the generator and the difference that the run has saved.
    """
    if not model.generator_layers:
        return saved_parameters(run, tree)
    parts = {GENERATOR: by_path(declared(generator(model))), DISCRIMINATOR: tree}
    whole = {f"{name}/{path}": leaf for name, part in parts.items() for path, leaf in part.items()}
    folder, read = saved_parameters(run, whole)

    def leaf(path: str) -> np.ndarray:
        own = read(f"{DISCRIMINATOR}/{path}")
        return own + read(f"{GENERATOR}/{path}") if shared(path) else own

    return folder, leaf


def saved_parameters(run: Path, tree: dict) -> tuple[Path, Callable[[str], np.ndarray]]:
    """(folder of the newest usable checkpoint, reader of one parameter by its path).

    CheckpointError where there is none; MismatchError where its parameters are not those of `tree`.
    """
    found = checkpoint.newest_usable(run / "checkpoints")
    if found is None:
        raise CheckpointError(f"No checkpoint in {run}: the run has not saved one yet.")
    folder, manifest = found
    saved = {place: place.partition("/") for place in manifest.leaves}
    places = {name: place for place, (top, _, name) in saved.items() if top in ("params", "frozen")}
    abstract = {path: jax.ShapeDtypeStruct(declaration.shape, jnp.float32) for path, declaration in tree.items()}
    named = {name: manifest.leaves[place] for name, place in places.items()}
    checkpoint.compare(replace(manifest, leaves=named), abstract, folder)

    def leaf(path: str) -> np.ndarray:
        return np.asarray(checkpoint.read(folder, {places[path]: abstract[path]})[places[path]])

    return folder, leaf
