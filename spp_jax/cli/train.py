"""Train a judge of photographs. `python train.py --help` lists every option."""

import collections
import contextlib
import dataclasses
import importlib.metadata
import io
import json
import math
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
import tyro
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from spp_jax.addresses import AnyPath, is_address, path_at
from spp_jax.buckets import Bucket, BucketPlan, plan_buckets
from spp_jax.checkpoints import About, Checkpoints
from spp_jax.compilation import (
    BucketExecutables,
    DoesNotFitError,
    data_mesh,
    default_cache_dir,
    device_memory,
    placements,
    use_compilation_cache,
    warn_of_compilations,
)
from spp_jax.config import RunConfig, UsageError
from spp_jax.data import load_dataset
from spp_jax.data.records import SPLITS, Records, split_records
from spp_jax.data.schedule import Schedule, at_scale
from spp_jax.layers import RandomState
from spp_jax.metrics import agreement
from spp_jax.models.configured import build_model
from spp_jax.models.weights import flat_names, from_torchvision, read_tensors, take_variables
from spp_jax.names import printable, some
from spp_jax.run.journal import Journal, draw_curves, write_skipped
from spp_jax.run.report import write_report
from spp_jax.scoring import forward_executables, score_records
from spp_jax.training import Recipe, TrainState, create_training, fit, step_executables
from spp_jax.training.losses import create_loss

DONE, FAILED, WRONG_USE, SKIPPED, INTERRUPTED = 0, 1, 2, 3, 75
_REDRAWN_AFTER = 30  # seconds: drawing takes one, which an epoch may not last


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a judge of photographs on whole pictures, at their own shapes.

    Exit status: 0 done; 1 failed; 2 wrong use; 3 done, with photographs skipped (each named on standard
    error); 75 interrupted, state saved: run again with --resume.
    """

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=RunConfig)
    out: AnyPath | None = None
    """Folder of the run, on a disk or at gs://... Default: checkpoints/DATA-MODEL-foldN."""
    resume: bool = False
    """Go on from the latest checkpoint in --out, with the configuration saved there."""
    dry_run: bool = False
    """Print the buckets, the batches and the memory they take, and stop."""
    plan: Path | None = None
    """Take buckets and batch sizes from this file, the buckets.json of another run, instead of planning
    them: --buckets, --pixels-per-step, --batch-multiple and --shape-multiple then decide nothing."""
    data_dir: AnyPath = Path(platformdirs.user_cache_dir("spp_jax")) / "data"
    """Where prepared data sets are kept, and downloads put, in manual/NAME; of --data folder, your folder."""
    outside_files: bool = False
    """Of --data folder: files may lie outside of it, by absolute names, '..' or links."""
    cache_dir: str = default_cache_dir()
    """Where compiled programs are kept: a folder, also one that several hosts share, or gs://... Trusted:
    who can write there can run programs as you. Default: $JAX_COMPILATION_CACHE_DIR, or private to you."""
    keep_mib: int = 1024
    """Decode a picture once, and not anew in every epoch, where those of training and validation take no
    more memory than this, decoded; at --scales 1 alone. 0: never. The result is the same."""
    fsdp: int | None = None
    """Divide every parameter of at least so many numbers, and what the optimiser keeps of it, among the
    devices: for networks whose heads do not fit one."""
    profile: int = 0
    """Trace so many steps, once the first ten are done, into profile/ in --out (TensorBoard shows it)."""
    distributed: bool = False
    """This is one of several processes of the run that JAX finds by itself: TPU pods, Slurm, Open MPI."""
    coordinator: str | None = None
    """One of several processes elsewhere: HOST:PORT of process 0; with --processes and --process-id."""
    processes: int | None = None
    """How many processes the run has, each with the same number of devices."""
    process_id: int | None = None
    """Which of them this is, from 0."""

    def folder(self) -> Path:
        """Where this run writes."""
        run = self.run
        return self.out or Path("checkpoints") / f"{run.data}-{run.model}-fold{run.fold}"


class TooManySkippedError(Exception):
    """More pictures could not be read than the configuration allows."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What follows from a configuration and its data set before anything is trained."""

    config: RunConfig
    mesh: Mesh
    parts: dict[str, Records]
    skipped: dict[str, str]
    schedule: Schedule
    total_steps: int

    @property
    def marks(self) -> tuple[float, ...]:
        """The scores that the votes stand for; empty where they are not used."""
        return self.parts["train"].marks


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore  # names need not be text
    before = _interrupted_by_sigterm()
    try:
        options = _parse(arguments)
        use_compilation_cache(options.cache_dir)
        job = _prepare(options)
        return _dry_run(job, options.fsdp) if options.dry_run else _train(job, options)
    except UsageError as error:
        print(f"train.py: {printable(error)}", file=sys.stderr)
        return WRONG_USE
    except (OSError, FloatingPointError, TooManySkippedError) as error:
        print(f"train.py: {printable(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("train.py: interrupted; if anything was saved, --resume goes on with it", file=sys.stderr)
        return INTERRUPTED
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _interrupted_by_sigterm() -> Any:
    """Have SIGTERM do what Ctrl-C does, also before and after training; returns what it did before."""

    def interrupt(number, frame) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, interrupt)


def _parse(arguments: list[str] | None) -> Options:
    """Options; with --resume, the saved configuration is what the flags are checked against."""
    options = tyro.cli(Options, args=arguments)
    _join(options)
    folder = options.folder()
    with Checkpoints(folder) as checkpoints:
        if not options.resume:
            if checkpoints.latest_step() is not None and not options.dry_run:
                raise UsageError(
                    f"{folder} already holds a run: go on with it (--resume) or name another folder (--out)"
                )
            return options
        saved = checkpoints.about().config
    asked = tyro.cli(Options, args=arguments, default=dataclasses.replace(options, run=saved))
    differing, harmless = asked.run.differences(saved)
    if differing:
        raise UsageError(
            f"--resume goes on with the configuration of {folder}; drop or mend {'; '.join(differing)}"
        )
    if harmless:
        _say(f"--resume goes on with {'; '.join(harmless)} as it was")
    return asked


def _join(options: Options) -> None:
    """Become one of several processes, where there are several."""
    explicit = (options.coordinator, options.processes, options.process_id)
    if any(value is not None for value in explicit):
        if None in explicit or options.distributed:
            raise UsageError(
                "give --coordinator, --processes and --process-id together, or --distributed alone"
            )
    elif not options.distributed:
        return
    try:  # what is not given, JAX finds by itself
        jax.distributed.initialize(*explicit)  # pyright: ignore[reportArgumentType]
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"the processes do not find each other: {' '.join(str(error).split())}") from None


def _say(text: str) -> None:
    """To standard error, by one process of the run."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stderr)


def _prepare(options: Options) -> Job:
    config = options.run
    smallest = _smallest(config)
    records, unread = load_dataset(
        config.data,
        options.data_dir,
        config.decoding,
        say=_say,
        outside_files=options.outside_files,
        near_duplicates=config.near_duplicates,
    )
    if records.splits and config.protocol != "official":
        _say(f"{config.data} has a split of its own, which --protocol official would use")
    create_loss(config.loss, marks=records.marks)  # refused now where it needs votes and there are none
    if config.loss != "emd":
        records = dataclasses.replace(records, histograms=None, marks=())
    parts, skipped = {}, {}
    for split in SPLITS:  # before any picture is dropped: a part does not depend on what can be read
        try:
            whole = split_records(records, split, config.protocol, config.fold)
        except ValueError as error:
            raise UsageError(str(error)) from None
        parts[split], dropped = whole.usable(smallest, unread)
        if not len(parts[split]):
            raise UsageError(f"no picture of {split} can be read and is at least {smallest}: {some(dropped)}")
        skipped |= dropped
    watched = {split: parts[split] for split in ("train", "validation")}  # each epoch
    size = sum(part.nbytes for part in watched.values())
    if config.scales == (1.0,) and size <= options.keep_mib * 2**20:
        parts |= {split: part.decoded_once() for split, part in watched.items()}
    # Counted once at their own size: what is planned, and so compiled, is then the same for all folds.
    scaled = [at_scale(parts["train"].sizes, scale, smallest) for scale in config.scales if scale != 1]
    plan = _plan(options, np.concatenate([*(part.sizes for part in parts.values()), *scaled]))
    schedule = Schedule(
        parts["train"].sizes,
        plan,
        seed=config.seed,
        flip=config.flip,
        scales=config.scales,
        smallest=smallest,
    )
    total_steps = config.steps or schedule.first_step(config.epochs)
    return Job(config, data_mesh(), parts, skipped, schedule, total_steps)


def _plan(options: Options, sizes: np.ndarray) -> BucketPlan:
    """One plan for the whole data set: all of training, validation and test runs in its buckets."""
    if options.resume:
        if options.plan:
            raise UsageError("--resume goes on with the plan that is saved there: drop --plan")
        with Checkpoints(options.folder()) as checkpoints:
            plan = checkpoints.about().plan
        try:
            plan.assign(sizes)
        except ValueError:
            raise _other_records(options.folder()) from None
    elif options.plan:
        try:
            plan = BucketPlan.from_json(options.plan.read_text())
            plan.assign(sizes)
        except (OSError, ValueError) as error:
            raise UsageError(f"--plan {options.plan}: {error}") from None
    else:
        plan = plan_buckets(sizes, **options.run.bucketing)
        for bucket in plan.buckets:
            if bucket.pixels > options.run.pixels_per_step:
                _say(
                    f"a batch of {bucket} has {bucket.pixels:,} pixels, more than --pixels-per-step "
                    f"{options.run.pixels_per_step:,}: its batch size cannot be smaller"
                )
    return plan


def _smallest(config: RunConfig) -> tuple[int, int]:
    """The smallest picture the model takes; refuses an unknown model before any work is done."""
    model = nnx.eval_shape(lambda: build_model(config, 1))
    return max(model.min_size[0], config.min_side), max(model.min_size[1], config.min_side)


def _dry_run(job: Job, fsdp: int | None) -> int:
    recipe, state = create_training(job.config, job.total_steps, job.schedule.mean_batch, job.marks)
    step = step_executables(recipe, state, job.mesh, len(job.marks), fsdp)
    print(_describe(job))
    print("\n  bucket (h x w)   batch   pictures   batches/epoch   memory of a step   compiled in")
    epoch = list(job.schedule.steps(0, job.schedule.first_step(1)))
    batches = collections.Counter(spec.bucket for spec in epoch)
    pictures = collections.Counter()
    for spec in epoch:
        pictures[spec.bucket] += len(spec.rows)

    def line(bucket: Bucket, memory: str, seconds: str) -> None:
        height, width = bucket.shape
        tqdm.write(
            f"  {height:6d} x {width:<6d} {bucket.batch_size:6d} {pictures[bucket]:10d}"
            f" {batches[bucket]:15d} {memory:>18s} {seconds:>13s}"
        )

    _compile({"step": (step, job.schedule.buckets)}, job.mesh, line)
    return DONE


def _train(job: Job, options: Options) -> int:
    config, folder, schedule = job.config, options.folder(), job.schedule
    train, validation = job.parts["train"], job.parts["validation"]
    about = About(config, schedule.plan, train.digest(), job.marks)
    recipe, state = create_training(config, job.total_steps, schedule.mean_batch, job.marks)
    state = jax.device_put(state, placements(state, job.mesh, options.fsdp))
    step = step_executables(recipe, state, job.mesh, len(job.marks), options.fsdp)
    judge = _Judge(recipe, state, job, options.fsdp)
    leads = jax.process_index() == 0
    skipped = dict(job.skipped)
    pictures = len(skipped) + sum(map(len, job.parts.values()))

    if not is_address(folder):  # on every host: one that ended alone would leave the others waiting
        _check_writable(folder)
    _say(_describe(job))
    for name, reason in job.skipped.items():
        _say(f"skipped {printable(name)}: {printable(reason)}")
    _check_share(len(skipped), pictures, config)
    with Checkpoints(folder) as checkpoints, contextlib.ExitStack() as open_things:
        interrupted = open_things.enter_context(_Interruption(checkpoints))

        def list_skipped() -> None:
            if skipped and leads:
                write_skipped(folder / "skipped.csv", skipped)

        open_things.callback(list_skipped)  # however the run ends: it is wanted most where it ended early
        start = 0
        if options.resume:
            start, state = _restore(checkpoints, about, state)
            _say(f"resumed at step {start} of {job.total_steps}")
        elif config.init_from:
            state = _begin_from(config, state)
        programs = {"step": (step, schedule.buckets), "forward": (judge.forward, judge.buckets)}
        _compile(programs, job.mesh, _say_compiled, interrupted.came)
        journal = open_things.enter_context(contextlib.closing(Journal(folder, start, writes=leads)))
        for line in journal.lines:  # before a run that goes on here
            skipped |= line.get("skipped", {})
        bar = tqdm(
            total=job.total_steps, initial=start, unit="step", desc="train", mininterval=1, disable=not leads
        )
        open_things.enter_context(bar)
        profile = open_things.enter_context(_Profile(folder, options.profile, start))
        began, seen = time.perf_counter(), 0
        saved_at = drawn_at = time.monotonic()
        judged: np.ndarray | None = None  # the scores of the validation part, by the latest state
        best = max(
            (line["validation"]["srcc"] or -1 for line in journal.lines if "validation" in line), default=-1
        )

        def save(done: int, state: TrainState, srcc: float | None = None) -> None:
            nonlocal saved_at
            if checkpoints.latest_step() != done:
                journal.flush()
                checkpoints.save(done, state.model, _training_part(state), about, srcc)
                saved_at = time.monotonic()

        def note_skipped(failed: dict[str, str]) -> None:
            for name in failed.keys() - skipped.keys():
                _say(f"skipped {printable(name)}: {printable(failed[name])}")
            skipped.update(failed)
            _check_share(len(skipped), pictures, config)

        def validate(done: int, state: TrainState) -> float | None:
            """The SRCC, where it is the best so far."""
            nonlocal best, judged, drawn_at
            result, judged, failed = judge.validate(state, validation)
            note_skipped(failed)
            journal.write({"step": done, "validation": result, **({"skipped": failed} if failed else {})})
            _say(
                f"epoch {schedule.epochs_done(done):g}: validation loss {result['loss']:.3f}, "
                f"accuracy {result['accuracy']:.1%}, SRCC {result['srcc'] or math.nan:.3f}"
            )
            if leads and time.monotonic() - drawn_at >= _REDRAWN_AFTER:
                _draw_curves(journal, schedule, folder)
                drawn_at = time.monotonic()
            if (result["srcc"] or -1) <= best:
                return None
            best = result["srcc"]
            return best

        def after_step(done: int, state: TrainState, metrics: dict) -> bool:
            nonlocal seen
            seen += metrics["pictures"]
            failed = {train.ids[index]: reason for index, reason in metrics.pop("failed").items()}
            note_skipped(failed)
            journal.write({"step": done, **metrics, **({"skipped": failed} if failed else {})})
            bar.set_postfix_str(
                f"loss {metrics['loss']:.3f}, accuracy {metrics['accuracy']:.2f}, "
                f"{seen / (time.perf_counter() - began):.1f} images/s",
                refresh=False,
            )
            bar.update()
            profile.after(done)
            ends = done == job.total_steps
            srcc = validate(done, state) if ends or schedule.epochs_done(done).is_integer() else None
            stopping = interrupted.stops_after(done)  # asked once: what stops is saved
            minutes = (time.monotonic() - saved_at) / 60
            due = (
                config.save_minutes is not None
                and jax.process_count() == 1
                and minutes >= config.save_minutes
            )
            if done % config.save_every == 0 or due or ends or stopping or srcc is not None:
                save(done, state, srcc)
            return stopping

        if not options.resume:
            save(0, state)
            checkpoints.wait()  # what cannot be written is said now, and not when an epoch is lost
        if leads:
            _describe_run(job, folder)
        if not interrupted.came():  # while compiling
            with warn_of_compilations():
                state = fit(
                    step,
                    state,
                    train,
                    schedule,
                    job.mesh,
                    start=start,
                    stop=job.total_steps,
                    after_step=after_step,
                )
        checkpoints.wait()
    if interrupted.came():
        _say(f"interrupted; saved in {folder}: run again with --resume")
        return INTERRUPTED
    _test(judge, state, job, folder, skipped)
    if judged is None:  # a finished run was resumed; by all hosts, as the program runs on all
        judged, _, _ = judge(state, validation)
    if leads:
        if not _draw_curves(journal, schedule, folder):
            _say("curves.png is not drawn: pip install 'spp_jax[plots]'")
        title = f"{config.data}, {config.model}, fold {config.fold}"
        facts = {name: str(value) for name, value in (_facts(job) | config.to_dict()).items()}
        write_report(
            folder / "report.html",
            title=title,
            facts=facts,
            lines=journal.lines,
            epochs_done=schedule.epochs_done,
            records=validation,
            scores=judged,
        )
        write_skipped(folder / "skipped.csv", skipped)
    if skipped:
        _say(f"skipped {len(skipped)} photographs: {folder / 'skipped.csv'}")
    return SKIPPED if skipped else DONE


def _begin_from(config: RunConfig, state: TrainState) -> TrainState:
    """The state whose variables are another run's, or torchvision's, where they fit."""
    source, imported = str(config.init_from), None
    if Path(source).suffix in (".pth", ".pt", ".safetensors"):
        imported = from_torchvision(config.model, read_tensors(source), config.levels)
        found = imported.variables
        for what, names in (("has no place here", imported.unused), ("is missing there", imported.missing)):
            if names:
                _say(f"{source}: {', '.join(names)} {what}")
    else:
        with Checkpoints(path_at(source)) as checkpoints:
            found = checkpoints.model_variables()
    random, stats = nnx.split_state(state.stats, RandomState, ...)
    begun = nnx.merge_state(state.params, stats)
    merged, taken, left = take_variables(begun, found)
    misfits = [name for name in left if name.startswith("body/") and name in found]
    if misfits and imported:
        pure = nnx.to_pure_dict(begun)
        ours = dict(zip(flat_names(pure), jax.tree.leaves(pure), strict=True))
        raise UsageError(
            f"--init-from {source}: another network's of the same names: {misfits[0]} has shape "
            f"{found[misfits[0]].shape} there, and {ours[misfits[0]].shape} here"
        )
    if not taken:
        raise UsageError(
            f"--init-from {source}: no variable there has path and shape of one of {config.model}"
        )
    _say(f"taken from {source}: {', '.join(taken)}")
    if left:
        _say(f"left as they begin, as they are not there in this shape: {', '.join(left)}")
    params, stats = nnx.split_state(merged, nnx.Param, ...)
    average = None if state.average is None else jax.tree.map(jnp.copy, params)
    fresh = state._replace(params=params, stats=nnx.merge_state(stats, random), average=average)
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), fresh, state)


class _Profile:
    """A trace of some steps, for TensorBoard."""

    _AFTER = 10  # the first steps are not like the others

    def __init__(self, folder: Path, steps: int, start: int):
        self._folder, self._first, self._last = (
            folder / "profile",
            start + self._AFTER,
            start + self._AFTER + steps,
        )
        self._runs = False

    def __enter__(self) -> "_Profile":
        return self

    def after(self, done: int) -> None:
        if done == self._first < self._last:
            jax.profiler.start_trace(str(self._folder))
            self._runs = True
        elif done == self._last and self._runs:
            self.__exit__()

    def __exit__(self, *exception) -> None:
        if self._runs:
            jax.profiler.stop_trace()
            self._runs = False


def _check_writable(folder: Path) -> None:
    """Said before the work of compiling, and leaving nothing behind."""
    nearest = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass


def _check_share(skipped: int, pictures: int, config: RunConfig) -> None:
    if skipped > config.max_failed * pictures:
        raise TooManySkippedError(
            f"{skipped} of {pictures} pictures had to be skipped, more than --max-failed "
            f"{config.max_failed:g} allows; what was saved stands"
        )


def _restore(checkpoints: Checkpoints, about: About, like: TrainState) -> tuple[int, TrainState]:
    if checkpoints.about().records != about.records:
        raise _other_records(checkpoints.folder)
    merged = checkpoints.restore_model(like.model)
    judging, stats = nnx.split_state(merged, nnx.Param, ...)
    start = checkpoints.latest_step()
    assert start is not None  # restore_model would have said so
    opt_state, params = checkpoints.restore_training(_training_part(like))
    state = like._replace(params=judging, stats=stats, opt_state=opt_state)
    return start, state if params is None else state._replace(params=params, average=judging)


def _training_part(state: TrainState) -> tuple:
    """What only going on needs: the optimiser's state, and the parameters where others are judged by."""
    return state.opt_state, None if state.average is None else state.params


def _other_records(folder: Path) -> UsageError:
    return UsageError(
        f"{folder} was trained on other records: the data set has changed since. "
        "Train anew in another folder (--out)"
    )


def _compile(
    programs: dict[str, tuple[BucketExecutables, tuple[Bucket, ...]]],
    mesh: Mesh,
    say: Callable[[Bucket, str, str], None],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Compile ahead of time; refuse what would not fit the device, naming every such bucket."""
    available = device_memory(mesh.devices.flat[0])
    too_large = []
    total = sum(len(buckets) for _, buckets in programs.values())
    with tqdm(total=total, unit="program", desc="compile") as bar:
        for name, (executables, buckets) in programs.items():
            try:
                for compiled in executables.compile_all(buckets):
                    memory = "not told" if compiled.bytes is None else f"{compiled.bytes / 2**20:.0f} MiB"
                    if available and compiled.bytes and compiled.bytes > available:
                        too_large.append(f"{name}, bucket {compiled.bucket}: {memory}")
                    if name == "step":
                        say(compiled.bucket, memory, f"{compiled.seconds:.1f} s")
                    bar.update()
                    if stop():
                        return
            except DoesNotFitError as error:
                too_large.append(f"{name}, {error}")
    if too_large:
        limit = f" of {available / 2**20:.0f} MiB" if available else ""
        raise UsageError(
            f"these do not fit the memory{limit} of {mesh.devices.flat[0].device_kind}: "
            f"{'; '.join(too_large)}. Lower --pixels-per-step"
        )


def _say_compiled(bucket: Bucket, memory: str, seconds: str) -> None:
    tqdm.write(f"compiled for {bucket} pixels: {memory}, {seconds}", file=sys.stderr)


def _describe_run(job: Job, folder: Path) -> None:
    """Leave in the run's folder what it is, and its plan, for --plan of other runs and as a picture."""
    (folder / "run.json").write_text(json.dumps(_facts(job) | job.config.to_dict(), indent=2) + "\n")
    if (folder / "buckets.json").exists():
        return
    (folder / "buckets.json").write_text(job.schedule.plan.to_json() + "\n")
    sizes = np.concatenate([records.sizes for records in job.parts.values()])
    with contextlib.suppress(ModuleNotFoundError):  # said once, where the curves are drawn
        drawn = io.BytesIO()
        job.schedule.plan.draw(sizes, drawn, title=job.config.data)
        (folder / "buckets.png").write_bytes(drawn.getvalue())


def _facts(job: Job) -> dict[str, str | int | float]:
    """Of this run, besides its configuration: what it ran on, and in which versions."""
    here = Path(__file__).parent
    try:
        git = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=here,
            capture_output=True,
            text=True,
        )
        revision = git.stdout.strip() or "unknown"
    except OSError:
        revision = "unknown"
    versions = {
        name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")
    }
    return {
        "revision": revision,
        "python": platform.python_version(),
        **versions,
        "devices": f"{job.mesh.size} {job.mesh.devices.flat[0].device_kind}",
        "processes": jax.process_count(),
        "bucket_plan": str(job.schedule.plan),
        "total_steps": job.total_steps,
        "mean_batch": job.schedule.mean_batch,
    }


def _draw_curves(journal: Journal, schedule: Schedule, folder: Path) -> bool:
    """Whether there is something to draw with."""
    try:
        (folder / "curves.png").write_bytes(draw_curves(journal.lines, schedule.epochs_done))
    except ModuleNotFoundError:
        return False
    except OSError as error:  # a picture less is no reason to lose what was trained
        _say(f"{folder / 'curves.png'} cannot be written: {error}")
    return True


class _Judge:
    """Scores validation and test part with the parameters of the moment, in the buckets of the run."""

    def __init__(self, recipe: Recipe, state: TrainState, job: Job, fsdp: int | None):
        self._plan, self._mesh = job.schedule.plan, job.mesh
        self.forward = forward_executables(
            recipe.graph, recipe.loss, state.model, job.mesh, len(job.marks), fsdp
        )
        judged = np.concatenate([job.parts[split].sizes for split in ("validation", "test")])
        self.buckets = tuple(
            job.schedule.plan.buckets[i] for i in np.unique(job.schedule.plan.assign(judged))
        )

    def __call__(self, state: TrainState, records: Records) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
        """Scores, losses, and the reason for each photograph that could not be read, by its id."""
        scores, losses, failed = score_records(self.forward, state.model, records, self._plan, self._mesh)
        if len(failed) == len(records):
            raise UsageError(f"not one of the {len(records)} photographs to judge by could be read")
        return scores, losses, {records.ids[index]: reason for index, reason in failed.items()}

    def validate(self, state: TrainState, records: Records) -> tuple[dict, np.ndarray, dict[str, str]]:
        """The figures, the scores, and what could not be read."""
        scores, losses, failed = self(state, records)
        figures = agreement(scores, records.scores, records.good).to_dict()
        return {"loss": float(np.nanmean(losses)), **figures}, scores, failed


def _test(judge: _Judge, state: TrainState, job: Job, folder: Path, skipped: dict[str, str]) -> None:
    records, config = job.parts["test"], job.config
    scores, _, failed = judge(state, records)
    for name, reason in failed.items():
        _say(f"skipped {printable(name)}: {printable(reason)}")
    skipped.update(failed)
    if jax.process_index():
        return
    result = agreement(scores, records.scores, records.good)
    groups = sorted(set(records.groups))
    named = ", ".join(groups) if len(groups) <= 8 else f"{len(groups)} groups"
    print(f"\ntest, {config.protocol}, fold {config.fold}: photographs never seen ({named})")
    print(result.table())
    described = {"data": config.data, "split": "test", "protocol": config.protocol, "fold": config.fold}
    described |= result.to_dict()
    (folder / "metrics.json").write_text(json.dumps(described, indent=2) + "\n")
    print(f"\nwritten to {folder}: checkpoints, report.html, metrics.json, metrics.jsonl and pictures")


def _describe(job: Job) -> str:
    schedule, device = job.schedule, job.mesh.devices.flat[0]
    counts = ", ".join(f"{len(records)} {split}" for split, records in job.parts.items())
    return (
        f"{job.config.data}, fold {job.config.fold}: {counts} pictures\n"
        f"{job.config.model}, pyramid {job.config.levels}: {job.total_steps} steps of about "
        f"{schedule.mean_batch:.1f} pictures; {len(schedule.buckets)} buckets, {schedule.waste:.1%} "
        f"of the pixels are padding; on {job.mesh.size} {device.device_kind}"
    )


class _Interruption:
    """Whether SIGTERM or Ctrl-C has come; a second one stops at once, saving nothing.

    On several hosts these agree on a step to stop after, by Orbax: one that saved alone would wait for ever.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints, self._came = checkpoints, False

    def came(self) -> bool:
        return self._came

    def stops_after(self, step: int) -> bool:
        """Whether to stop, asked after each step; on every host the same."""
        if jax.process_count() > 1:
            self._came = self._checkpoints.reached_preemption(step)
        return self._came

    def __enter__(self) -> "_Interruption":
        # JAX's own watch over SIGTERM tells the other hosts: it keeps its handler.
        signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._before = {s: signal.signal(s, self._handle) for s in signals}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame) -> None:
        if self._came:
            raise KeyboardInterrupt
        self._came = True
        print("\nstopping after this step; once more stops at once", file=sys.stderr)
