"""Train a judge of photographs. `python train.py --help` lists every option."""

import collections
import contextlib
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import platformdirs
import tyro
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from spp_jax.addresses import AnyPath
from spp_jax.buckets import Bucket, BucketPlan, plan_buckets
from spp_jax.checkpoints import About, Checkpoints
from spp_jax.compilation import (
    BucketExecutables,
    DoesNotFitError,
    data_mesh,
    default_cache_dir,
    device_memory,
    replicated,
    use_compilation_cache,
    warn_of_compilations,
)
from spp_jax.config import RunConfig, UsageError
from spp_jax.data import load_dataset
from spp_jax.data.records import SPLITS, Records, split_records
from spp_jax.data.schedule import Schedule, at_scale
from spp_jax.journal import Journal, draw_curves, write_skipped
from spp_jax.metrics import agreement
from spp_jax.models import create_model
from spp_jax.scoring import forward_executables, score_records
from spp_jax.training import TrainState, create_optimizer, create_state, fit, step_executables

DONE, FAILED, WRONG_USE, SKIPPED, INTERRUPTED = 0, 1, 2, 3, 75


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a judge of photographs on whole pictures, at their own shapes.

    Exit status: 0 done; 1 failed; 2 wrong use; 3 done, with photographs skipped (each named on standard
    error); 75 interrupted, state saved: run again with --resume.
    """

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=RunConfig)
    out: Path | None = None
    """Folder of the run. Default: checkpoints/DATA-MODEL-foldN."""
    resume: bool = False
    """Go on from the latest checkpoint in --out, with the configuration saved there."""
    dry_run: bool = False
    """Print the buckets, the batches and the memory they take, and stop."""
    plan: Path | None = None
    """Take buckets and batch sizes from this file, the buckets.json of another run, instead of planning
    them: --buckets, --pixels-per-step, --batch-multiple and --shape-multiple then decide nothing."""
    data_dir: AnyPath = Path(platformdirs.user_cache_dir("spp_jax")) / "data"
    """Where prepared data sets are kept, and downloads put, in manual/NAME; of --data folder, your folder."""
    cache_dir: str = default_cache_dir()
    """Where compiled programs are kept: a folder, also one that several hosts share, or gs://... Trusted:
    who can write there can run programs as you. Default: $JAX_COMPILATION_CACHE_DIR, or private to you."""

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


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        options = _parse(arguments)
        use_compilation_cache(options.cache_dir)
        job = _prepare(options)
        return _dry_run(job) if options.dry_run else _train(job, options)
    except UsageError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return WRONG_USE
    except (OSError, FloatingPointError, TooManySkippedError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("train.py: interrupted; what was saved stands: run again with --resume", file=sys.stderr)
        return INTERRUPTED


def _parse(arguments: list[str] | None) -> Options:
    """Options; with --resume, the saved configuration is what the flags are checked against."""
    options = tyro.cli(Options, args=arguments)
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
    if differing := asked.run.differences(saved):
        raise UsageError(
            f"--resume goes on with the configuration of {folder}; drop or mend {'; '.join(differing)}"
        )
    return asked


def _prepare(options: Options) -> Job:
    config = options.run
    smallest = create_model_shape(config)
    records, unread = load_dataset(
        config.data, options.data_dir, config.decoding, say=lambda text: print(text, file=sys.stderr)
    )
    parts, skipped = {}, {}
    for split in SPLITS:  # before any picture is dropped: a part does not depend on what can be read
        try:
            whole = split_records(records, split, config.protocol, config.fold)
        except ValueError as error:
            raise UsageError(str(error)) from None
        parts[split], dropped = whole.usable(smallest, unread)
        if not len(parts[split]):
            raise UsageError(f"no picture of {split} can be read and is at least {smallest}")
        skipped |= dropped
    scaled = [at_scale(parts["train"].sizes, scale, smallest) for scale in config.scales]
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
                print(
                    f"a batch of {bucket} has {bucket.pixels:,} pixels, more than --pixels-per-step "
                    f"{options.run.pixels_per_step:,}: its batch size cannot be smaller",
                    file=sys.stderr,
                )
    return plan


def create_model_shape(config: RunConfig) -> tuple[int, int]:
    """The smallest picture the model takes; refuses an unknown model before any work is done."""
    try:
        model = nnx.eval_shape(lambda: create_model(config.model, levels=config.levels, rngs=nnx.Rngs(0)))
    except ValueError as error:
        raise UsageError(f"--model {config.model}: {error}") from None
    return max(model.min_size[0], config.min_side), max(model.min_size[1], config.min_side)


def _dry_run(job: Job) -> int:
    optimizer = create_optimizer(job.config, job.total_steps)
    graph, state = create_state(job.config, optimizer)
    step = step_executables(graph, optimizer, job.schedule.mean_batch, state, job.mesh)
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
    about = About(config, schedule.plan, train.digest())
    optimizer = create_optimizer(config, job.total_steps)
    graph, state = create_state(config, optimizer)
    state = jax.device_put(state, replicated(job.mesh))
    step = step_executables(graph, optimizer, schedule.mean_batch, state, job.mesh)
    judge = _Judge(graph, state, job)
    interrupted = _Interruption()
    skipped = dict(job.skipped)
    pictures = len(skipped) + sum(map(len, job.parts.values()))

    print(_describe(job), file=sys.stderr)
    for name, reason in job.skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    _check_share(len(skipped), pictures, config)
    with Checkpoints(folder) as checkpoints, interrupted, contextlib.ExitStack() as open_things:
        # However the run ends: the list is wanted most where it ended early.
        open_things.callback(lambda: write_skipped(folder / "skipped.csv", skipped) if skipped else None)
        start = 0
        if options.resume:
            start, state = _restore(checkpoints, about, state)
            print(f"resumed at step {start} of {job.total_steps}", file=sys.stderr)
        programs = {"step": (step, schedule.buckets), "forward": (judge.forward, judge.buckets)}
        _compile(programs, job.mesh, _say_compiled, lambda: bool(interrupted))
        journal = open_things.enter_context(contextlib.closing(Journal(folder, start)))
        for line in journal.lines:  # before a run that goes on here
            skipped |= line.get("skipped", {})
        bar = tqdm(total=job.total_steps, initial=start, unit="step", desc="train", mininterval=1)
        open_things.enter_context(bar)
        began, seen = time.perf_counter(), 0

        def save(done: int, state: TrainState) -> None:
            if checkpoints.latest_step() != done:
                journal.flush()
                checkpoints.save(done, *_parts_of(state), about)

        def note_skipped(failed: dict[str, str]) -> None:
            for name in failed.keys() - skipped.keys():
                tqdm.write(f"skipped {name}: {failed[name]}", file=sys.stderr)
            skipped.update(failed)
            _check_share(len(skipped), pictures, config)

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
            if schedule.epochs_done(done).is_integer() or done == job.total_steps:
                result, failed = judge.validate(state, validation)
                note_skipped(failed)
                journal.write({"step": done, "validation": result, **({"skipped": failed} if failed else {})})
                tqdm.write(
                    f"epoch {schedule.epochs_done(done):g}: validation loss {result['loss']:.3f}, "
                    f"accuracy {result['accuracy']:.1%}, SRCC {result['srcc'] or math.nan:.3f}",
                    file=sys.stderr,
                )
            stopping = bool(interrupted)  # asked once: what stops is saved
            if done % config.save_every == 0 or done == job.total_steps or stopping:
                save(done, state)
            return stopping

        if not options.resume:
            save(0, state)
        if not (folder / "buckets.json").exists():
            _describe_buckets(job, folder)
        if not interrupted:  # while compiling
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
    try:
        draw_curves(journal.lines, schedule.epochs_done, folder / "curves.png")
    except ModuleNotFoundError:
        print("curves.png is not drawn: pip install 'spp_jax[plots]'", file=sys.stderr)
    if interrupted:
        print(f"interrupted; saved in {folder}: run again with --resume", file=sys.stderr)
        return INTERRUPTED
    _test(judge, state, job, folder, skipped)
    write_skipped(folder / "skipped.csv", skipped)
    if skipped:
        print(f"skipped {len(skipped)} photographs: {folder / 'skipped.csv'}", file=sys.stderr)
    return SKIPPED if skipped else DONE


def _check_share(skipped: int, pictures: int, config: RunConfig) -> None:
    if skipped > config.max_failed * pictures:
        raise TooManySkippedError(
            f"{skipped} of {pictures} pictures had to be skipped, more than --max-failed "
            f"{config.max_failed:g} allows; what was saved stands"
        )


def _restore(checkpoints: Checkpoints, about: About, like: TrainState) -> tuple[int, TrainState]:
    saved = checkpoints.about()
    if saved.records != about.records:
        raise _other_records(checkpoints.folder)
    model, training = _parts_of(like)
    merged = checkpoints.restore_model(model)
    params, stats = nnx.split_state(merged, nnx.Param, ...)
    start = checkpoints.latest_step()
    assert start is not None  # restore_model would have said so
    return start, TrainState(params, stats, checkpoints.restore_training(training))


def _other_records(folder: Path) -> UsageError:
    return UsageError(
        f"{folder} was trained on other records: the data set has changed since. "
        "Train anew in another folder (--out)"
    )


def _parts_of(state: TrainState):
    """The two parts of a checkpoint: what scoring needs, and what only going on needs."""
    return nnx.merge_state(state.params, state.stats), state.opt_state


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


def _describe_buckets(job: Job, folder: Path) -> None:
    """Leave the plan in the run's folder: for --plan of other runs, and as a picture."""
    (folder / "buckets.json").write_text(job.schedule.plan.to_json() + "\n")
    sizes = np.concatenate([records.sizes for records in job.parts.values()])
    with contextlib.suppress(ModuleNotFoundError):  # said once, where the curves are drawn
        job.schedule.plan.draw(sizes, folder / "buckets.png", title=job.config.data)


class _Judge:
    """Scores validation and test part with the parameters of the moment, in the buckets of the run."""

    def __init__(self, graph: nnx.GraphDef, state: TrainState, job: Job):
        self._plan, self._mesh = job.schedule.plan, job.mesh
        self.forward = forward_executables(graph, _parts_of(state)[0], job.mesh)
        judged = np.concatenate([job.parts[split].sizes for split in ("validation", "test")])
        self.buckets = tuple(
            job.schedule.plan.buckets[i] for i in np.unique(job.schedule.plan.assign(judged))
        )

    def __call__(self, state: TrainState, records: Records) -> tuple[np.ndarray, dict[str, str]]:
        """Scores, and the reason for each photograph that could not be read, by its id."""
        variables = _parts_of(state)[0]
        scores, failed = score_records(self.forward, variables, records, self._plan, self._mesh)
        if len(failed) == len(records):
            raise UsageError(f"not one of the {len(records)} photographs to judge by could be read")
        return scores, {records.ids[index]: reason for index, reason in failed.items()}

    def validate(self, state: TrainState, records: Records) -> tuple[dict, dict[str, str]]:
        """The figures, and what could not be read."""
        scores, failed = self(state, records)
        labels = records.scores
        sure = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
        loss = -np.nanmean(labels * np.log(sure) + (1 - labels) * np.log1p(-sure))
        return {"loss": float(loss), **agreement(scores, labels, records.good).to_dict()}, failed


def _test(judge: _Judge, state: TrainState, job: Job, folder: Path, skipped: dict[str, str]) -> None:
    records = job.parts["test"]
    scores, failed = judge(state, records)
    for name, reason in failed.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    skipped.update(failed)
    result = agreement(scores, records.scores, records.good)
    groups = sorted(set(records.groups))
    named = ", ".join(groups) if len(groups) <= 8 else f"{len(groups)} groups"
    print(f"\ntest, {job.config.protocol}, fold {job.config.fold}: photographs never seen ({named})")
    print(result.table())
    config = job.config
    described = {"data": config.data, "split": "test", "protocol": config.protocol, "fold": config.fold}
    described |= result.to_dict()
    (folder / "metrics.json").write_text(json.dumps(described, indent=2) + "\n")
    print(f"\nwritten to {folder}: checkpoints, metrics.json, metrics.jsonl, buckets.json and pictures")


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
    """True once SIGTERM or Ctrl-C has come; a second one stops at once, saving nothing."""

    def __init__(self):
        self._came = False

    def __bool__(self) -> bool:
        return self._came

    def __enter__(self) -> "_Interruption":
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame) -> None:
        if self._came:
            raise KeyboardInterrupt
        self._came = True
        print("\nstopping after this step; once more stops at once", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
