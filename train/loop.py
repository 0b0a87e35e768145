"""A run from its first step to its last: restore, loop, evaluate, save."""

from __future__ import annotations

import sys
from pathlib import Path

import jax

from data.loader import Prefetcher
from data.prepare import Prepared, prepare
from data.schema import to_plain
from train import checkpoint, flops, schedule
from train.assembly import Assembly, assemble
from train.checkpoint import Checkpointer
from train.config import Config
from train.errors import Stopped
from train.evaluate import make_eval_step
from train.manifest import Manifest
from train.metrics import check_installed, make_writers
from train.mixing import stages_in_rows
from train.plan import Plan, make_plan
from train.progress import make_progress
from train.resume import check_resume
from train.rundir import RunDirectory, open_run, scope_difference
from train.session import Counters, Feed, Session, check_trained, saved_counters
from train.signals import StopSignal, Watchdog
from train.state import State
from train.step import Step


def train(config: Config, workdir: Path) -> None:
    """Train the run in `workdir` to its last step, from its newest checkpoint if it has one.

    Raises the UserErrors that `data.errors` and `train.errors` list; Stopped after a signal.
    """
    assembly = assemble(config)
    check_installed(config.log)
    with open_run(workdir) as directory:
        saved = directory.read_config()
        notes = [] if saved is None else check_resume(saved, to_plain(config))
        found = checkpoint.newest_usable(directory.checkpoints)
        if found is not None:
            check_trained(found[1].metadata, workdir)
        prepared = prepare(config.data, config.model.vocab_size)
        feed = Feed.make(assembly, prepared)
        plan = make_plan(config, feed.rows_per_epoch)
        if found is not None and found[1].step >= plan.total_steps:
            say(f"the run in {workdir} has its {plan.total_steps} steps; raise train.steps to go on")
            return
        with StopSignal() as stop, Watchdog(config.train.hang_timeout) as watchdog:
            session, state = begin(assembly, prepared, feed, plan, directory, found, notes)
            try:
                loop(session, state, stop, watchdog)
            finally:
                session.close()


def loop(session: Session, state: State, stop: StopSignal, watchdog: Watchdog) -> None:
    """Step until the plan's last step or a signal; evaluate and save when due. Metrics are read one step late."""
    config, plan = session.assembly.config, session.plan
    train_step = compile_step(session)
    first, pending = int(state.step), None
    with Prefetcher(session.feed.batch, first, plan.total_steps, config.data.prefetch, config.data.timeout) as batches:
        for step in range(first + 1, plan.total_steps + 1):
            watchdog.beat(f"step {step}")
            state, metrics = train_step(state, batches.get(step - 1))
            if pending is not None:
                session.record(*pending)
            pending = (step, metrics)
            stopping = session.stop_agreed(stop.requested is not None)
            if stopping or plan.eval_due(step) or plan.save_due(step):
                session.record(*pending)
                pending = None
                evaluated = session.evaluate(step, state, watchdog.beat) if plan.eval_due(step) else {}
                if stopping or plan.save_due(step):
                    session.save(step, state, evaluated)
                session.resume_clock()
            session.checkpointer.check()
            if stopping and step < plan.total_steps:
                session.checkpointer.wait()
                raise Stopped(
                    f"stopped by {stop.requested or 'a signal to another process'} after step {step}, which is saved; "
                    "run the same command again to go on"
                )
    session.checkpointer.wait()


def compile_step(session: Session):
    """The jitted step: the state's buffers are reused, and its shardings stay what they are."""
    assembly, plan = session.assembly, session.plan
    config = assembly.config
    step = Step(
        task=assembly.task,
        optimizer=assembly.optimizer,
        schedule=schedule.build(
            config.optim.schedule, config.optim.learning_rate, plan.total_steps, plan.resolve, plan.batches
        ),
        seed=config.train.seed,
        accumulate=config.train.accumulate,
        clip_norm=config.optim.clip_norm,
        ema_decay=config.optim.ema_decay,
        micro_batches=schedule.micro_batches(plan.batches, config.train.accumulate),
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, assembly.abstract)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def begin(
    assembly: Assembly,
    prepared: Prepared,
    feed: Feed,
    plan: Plan,
    directory: RunDirectory,
    found: tuple[Path, Manifest] | None,
    notes: list[str],
) -> tuple[Session, State]:
    """The session and its state: that of the checkpoint `found`, or a fresh one.

    Whatever can refuse the launch comes first; from there on the run directory is written.
    """
    config = assembly.config
    fingerprints = {
        "store_fingerprint": prepared.fingerprint,
        "tokenizer_fingerprint": prepared.tokenizer.fingerprint,
    }
    if feed.loader.mixture is not None:
        fingerprints["mixture_stages"] = stages_in_rows(feed.loader.mixture)
    if found is None:
        first, counters, state = 0, Counters(), initial(assembly)
    else:
        first, counters = found[1].step, saved_counters(found[1].metadata, fingerprints)
        state = checkpoint.restore_found(*found, assembly.abstract)
    per_device, how = flops.peak_flops(assembly.mesh.devices.flat[0], config.model.dtype)
    before = directory.read_environment()
    keep = config.checkpoint
    session = Session(
        assembly=assembly,
        plan=plan,
        feed=feed,
        eval_step=jax.jit(make_eval_step(assembly.task)),
        writers=make_writers(config.log, directory.path, first, directory.primary),
        progress=make_progress(plan.total_steps, first, directory.primary),
        checkpointer=Checkpointer(directory.checkpoints, keep.keep, plan.keep_every, keep.best),
        fingerprints=fingerprints,
        peak=per_device * assembly.mesh.size,
        counters=counters,
    )
    directory.write_config(to_plain(config), first)
    if directory.primary:
        prepared.tokenizer.save(directory.path / "tokenizer.json")
    now = directory.write_environment()
    difference = None if found is None else scope_difference(before, now)
    announce(session, directory.path, first, how)
    for line in (*(f"changed on resume: {note}" for note in notes), *([difference] if difference else [])):
        say(line)
    return session, state


def announce(session: Session, path: Path, first: int, how: str) -> None:
    """Say what runs where, from which step, and what decays; `how` the peak of the machine is known."""
    assembly, sources = session.assembly, session.feed.loader.sources
    lines = (
        f"run {path}: step {first} of {session.plan.total_steps}, mesh {dict(assembly.mesh.shape)}",
        f"{flops.parameter_count(assembly.declarations):,} parameters",
        *(f"an epoch of {name} is {rows.describe()}" for name, rows in sources.items()),
        f"MFU = {flops.FORMULA}; peak {session.peak / 1e9:.4g} GFLOP/s ({how})",
        *assembly.optimizer.describe().splitlines(),
    )
    for line in lines:
        say(line)


def initial(assembly: Assembly) -> State:
    """The state of a first start: fresh weights, or those of `train.init_from`."""
    source = assembly.config.train.init_from
    if source is None:
        return assembly.fresh()
    return assembly.from_params(checkpoint.load_params(Path(source), assembly.abstract_params))


def say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
