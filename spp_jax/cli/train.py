"""`spp-jax train`: train a network on a data set."""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Annotated

import jax
import tyro
from tqdm import tqdm

from spp_jax.buckets import STEP_COMPILATION_PRICE, BucketPlan
from spp_jax.checkpoints import Checkpoints
from spp_jax.cli.arguments import AnyPath, parsed
from spp_jax.cli.program import DONE, INTERRUPTED, SKIPPED, run_program
from spp_jax.compilation import (
    Compiled,
    default_cache_dir,
    price_file,
    use_compilation_cache,
    user_folder,
    watch_compilations,
)
from spp_jax.config import RunConfig
from spp_jax.errors import UsageError
from spp_jax.metrics import Agreement
from spp_jax.run.beginning import other_records
from spp_jax.run.job import DoesNotHoldError, Job, prepare
from spp_jax.run.lock import check_free
from spp_jax.run.probe import FEATURES, run_probe
from spp_jax.run.programs import compile_programs, measured_price, memory
from spp_jax.run.training_run import TrainingRun
from spp_jax.training import configured_training, step_executables

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a judge of photographs on whole pictures, at their own shapes.

    Exit status: 0 done; 1 failed; 2 wrong use; 3 done, and photographs were skipped (each is named on
    standard error); 75 interrupted and saved: run it again with --resume.
    """

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=RunConfig)
    out: AnyPath | None = None
    """Folder of the run, on a disk or at gs://... Default: checkpoints/DATA-MODEL-foldN."""
    resume: bool = False
    """Go on from the latest checkpoint in --out, with the configuration that is saved there. Where there is
    none yet, begin. So one command line serves the start and every restart."""
    dry_run: bool = False
    """Print the buckets, the batches and the memory they take, and stop."""
    plan: Path | None = None
    """Take buckets and batch sizes from this file, the buckets.json of another run, instead of planning
    them: --buckets, --pixels-per-step, --batch-multiple and --shape-multiple then decide nothing."""
    data_dir: AnyPath = user_folder() / "data"
    """Folder for prepared data sets; put downloads into manual/NAME in it. With --data folder, your
    folder."""
    outside_files: bool = False
    """With --data folder, files may lie outside of the folder, by absolute names, '..' or links."""
    cache_dir: str = default_cache_dir()
    """Folder for compiled programs, also one that several hosts share, or gs://... Whoever can write there
    can run programs as you. Default: $JAX_COMPILATION_CACHE_DIR, or a folder that is private to you."""
    keep_mib: int = 1024
    """Memory, in MiB, for decoded pictures. Where those of training and validation fit, each is decoded
    once and not in every epoch (with --scales 1 only). 0: never. The result is the same."""
    features_dir: Path = FEATURES
    """With --recipe probe, folder in which features of pictures are kept for the next probe."""
    fsdp: int | None = None
    """Divide every parameter of at least this many numbers, and what the optimiser keeps of it, among the
    devices: for networks whose heads do not fit on one."""
    profile: int = 0
    """Trace this many steps after the first ten, into profile/ in --out. TensorBoard shows it."""
    distributed: bool = False
    """This is one of several processes of a run that JAX finds by itself: on TPU pods, Slurm, Open MPI."""
    coordinator: str | None = None
    """Elsewhere: HOST:PORT of process 0. Give --processes and --process-id as well."""
    processes: int | None = None
    """How many processes the run has, each with the same number of devices."""
    process_id: int | None = None
    """Which of them this is, from 0."""

    def folder(self) -> Path:
        """Where this run writes."""
        run = self.run
        return self.out or Path("checkpoints") / f"{run.data}-{run.model}-fold{run.fold}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""

    def work() -> int:
        options = _parse(arguments)
        use_compilation_cache(options.cache_dir)
        job = _prepare(options)
        return _dry_run(job, options.fsdp) if options.dry_run else _train(job, options)

    return run_program("spp-jax train", Options, work)


def _parse(arguments: list[str] | None) -> Options:
    """Options; with --resume, the saved configuration is what the flags are checked against."""
    options = parsed(Options, "spp-jax train", arguments)
    _join(options)
    folder = options.folder()
    if jax.process_index() == 0 and not options.dry_run:
        check_free(folder)
    with Checkpoints(folder) as checkpoints:
        if options.resume and checkpoints.latest_step() is None:
            _log.info(f"--resume: {folder} holds no checkpoint yet: the run begins")
            return dataclasses.replace(options, resume=False)
        if not options.resume:
            if checkpoints.latest_step() is not None and not options.dry_run:
                raise UsageError(
                    f"{folder} already holds a run: go on with it (--resume) or name another folder (--out)"
                )
            return options
        saved = checkpoints.about().config
    asked = parsed(Options, "spp-jax train", arguments, default=dataclasses.replace(options, run=saved))
    differing, harmless = asked.run.differences(saved)
    if differing:
        raise UsageError(
            f"--resume goes on with the configuration of {folder}; drop or mend {'; '.join(differing)}"
        )
    if harmless:
        _log.info(f"--resume goes on with {'; '.join(harmless)} as it was")
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


def _prepare(options: Options) -> Job:
    """The job, with the plan of the run that is gone on with, of --plan, or one of its own."""
    if options.run.recipe == "probe" and options.resume:
        raise UsageError("a probe is fitted in one go: there is nothing that --resume could go on with")
    plan = None
    if options.plan:
        try:
            plan = BucketPlan.from_json(options.plan.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"--plan {options.plan}: {' '.join(str(error).split())[:300]}") from None
    if options.resume:
        with Checkpoints(options.folder()) as checkpoints:
            saved = checkpoints.about().plan
        if plan not in (None, saved):
            raise UsageError(f"--resume goes on with the plan of {options.folder()}: --plan is another one")
        plan = saved
    try:
        return prepare(
            options.run,
            options.data_dir,
            plan=plan,
            keep_mib=options.keep_mib,
            outside_files=options.outside_files,
        )
    except DoesNotHoldError as error:
        if options.resume:
            raise other_records(options.folder()) from None
        raise UsageError(f"--plan {options.plan}: {error}") from None


def _dry_run(job: Job, fsdp: int | None) -> int:
    recipe, state = configured_training(job.config, job.total_steps, job.schedule.mean_batch, job.marks)
    step = step_executables(recipe, state, job.mesh, job.parts["train"], fsdp)
    print(job)
    print("\n  bucket (h x w)   batch   pictures   batches/epoch   memory of a step   compiled in")
    epoch, done, read = job.epoch(), [], []

    def line(_: str, ready: Compiled) -> None:
        done.append(ready)
        height, width = ready.bucket.shape
        pictures, batches = epoch[ready.bucket]
        tqdm.write(
            f"  {height:6d} x {width:<6d} {ready.bucket.batch_size:6d} {pictures:10d}"
            f" {batches:15d} {memory(ready):>18s} {ready.seconds:11.1f} s"
        )

    start = time.perf_counter()
    with watch_compilations(lambda one: read.append(one.name == "step" and one.cached), explain=False):
        compile_programs({"step": (step, job.schedule.buckets)}, job.mesh, line)
    seconds = time.perf_counter() - start
    path = price_file("train", job.config.model, job.config.dtype)
    price = measured_price(step, done, None if any(read) else seconds, path)
    print(f"\n{price or 'what a compilation takes was not measured here yet'}")
    if job.config.buckets == "auto":
        print(f"--buckets auto counts {STEP_COMPILATION_PRICE:,} pixels for it, on every machine the same")
    return DONE


def _train(job: Job, options: Options) -> int:
    if job.config.recipe == "probe":
        result = run_probe(job, options.folder(), features_dir=options.features_dir)
        _print_figures(job, result.figures, options.folder())
        return SKIPPED if result.skipped else DONE
    run = TrainingRun(
        job, options.folder(), resume=options.resume, fsdp=options.fsdp, profile=options.profile
    )
    with run:
        figures = run.train()
    if figures is None:
        _log.info("run the same command again with --resume, and it goes on")
        return INTERRUPTED
    if jax.process_index() == 0:
        _print_figures(job, figures, options.folder())
    return SKIPPED if run.skipped else DONE


def _print_figures(job: Job, figures: Agreement, folder: Path) -> None:
    groups = sorted(set(job.parts["test"].groups))
    named = ", ".join(groups) if len(groups) <= 8 else f"{len(groups)} groups"
    print(f"\ntest, {job.config.protocol}, fold {job.config.fold}: photographs never seen ({named})")
    print(figures.table())
    print(f"\nwritten to {folder}: checkpoints, report.html, metrics.json, metrics.jsonl and pictures")
    print(f"to score photographs with it: spp-jax score --checkpoint {folder} PHOTO")
