"""One training run: begun, compiled, trained and finished, in a folder. It can be printed at any time."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from spp_jax.addresses import is_address
from spp_jax.checkpoints import About, Checkpoints
from spp_jax.compilation import Compiled, placed, placements, warn_of_compilations
from spp_jax.errors import SppJaxError, UsageError
from spp_jax.metrics import Agreement, merit
from spp_jax.names import printable
from spp_jax.run.artifacts import (
    check_writable,
    write_curves,
    write_description,
    write_figures,
    write_page,
)
from spp_jax.run.beginning import from_checkpoint, from_weights, training_part
from spp_jax.run.evaluator import Evaluator
from spp_jax.run.interruption import Interruption, StoppedError
from spp_jax.run.job import Job
from spp_jax.run.journal import Journal, write_skipped
from spp_jax.run.lock import RunLock
from spp_jax.run.profile import Profile
from spp_jax.run.programs import compile_programs, memory
from spp_jax.training import TrainState, configured_training, fit, step_executables

__all__ = ["TooManySkippedError", "TrainingRun"]

_log = logging.getLogger(__name__)
_REDRAWN_AFTER = 30  # seconds: drawing takes one, which an epoch may not last


class TooManySkippedError(SppJaxError):
    """More pictures could not be read than the configuration allows."""


class TrainingRun:
    """A job at work. Use as a context, and call :meth:`train`.

    Leaving the context waits for the last save and lists what was skipped, however the run ends.

    Attributes:
        job: what is done.
        folder: where it is written.
        done: steps behind.
        state: after them; donated to the next step.
        skipped: by id, why a picture was left out.
        best: the highest SRCC of the validation part so far; -1 before the first.
        validated: the latest scores of the validation part; None before the first.
        interrupted: whether it stopped before its end because it was told to.

    Example:
        >>> with TrainingRun(prepare(config, data_dir), Path("runs/first")) as run:  # doctest: +SKIP
        ...     figures = run.train()
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        *,
        resume: bool = False,
        fsdp: int | None = None,
        profile: int = 0,
    ):
        """Prepare the run; nothing is written yet.

        Args:
            job: what to do.
            folder: to write to, on a disk or at an address.
            resume: go on from the latest checkpoint there.
            fsdp: divide every parameter of at least so many numbers among the devices.
            profile: trace so many steps.

        Raises:
            UsageError: the configuration names something that does not exist.
        """
        self.job, self.folder = job, folder
        self.skipped = dict(job.skipped)
        self.done, self.best = 0, -1.0
        self.validated: np.ndarray | None = None
        self._journal: Journal | None = None
        self._resume, self._profiled = resume, profile
        self._leads = jax.process_index() == 0
        self._about = About.of(job.config, job.schedule.plan, job.parts["train"].digest(), job.marks)
        recipe, state = configured_training(job.config, job.total_steps, job.schedule.mean_batch, job.marks)
        self.state: TrainState = placed(state, placements(state, job.mesh, fsdp))
        self._step = step_executables(recipe, self.state, job.mesh, job.parts["train"], fsdp)
        self._evaluator = Evaluator(recipe, self.state, job, fsdp, self._check_interruption)
        self._seen, self._began = 0, time.perf_counter()
        self._saved_at = self._drawn_at = time.monotonic()

    def __enter__(self) -> "TrainingRun":
        self._open = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            if self._leads:
                opening.enter_context(RunLock(self.folder))
            self._checkpoints = opening.enter_context(Checkpoints(self.folder))
            self._interruption = opening.enter_context(Interruption())
            opening.callback(self._list_skipped)  # wanted most where a run ended early
            self._open = opening.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._open.__exit__(*exception)

    def __repr__(self) -> str:
        place = (
            f"step {self.done} of {self.job.total_steps}, epoch {self.job.schedule.epochs_done(self.done):g}"
        )
        best = f", best validation SRCC {self.best:.3f}" if self.best > -1 else ""
        return f"TrainingRun({self.folder}: {place}{best}, {len(self.skipped)} pictures skipped)"

    @property
    def interrupted(self) -> bool:
        """Whether it stopped, or stops, before its end because it was told to."""
        return self._interruption.came()

    @property
    def journal(self) -> Journal:
        """What every step and validation gave; there is none before :meth:`fit`."""
        if self._journal is None:
            raise AttributeError("the run has no journal before fit()")
        return self._journal

    def train(self) -> Agreement | None:
        """All of it: begin, compile, fit, finish.

        Returns:
            The figures of the test part; None where the run was interrupted, its state saved.

        Raises:
            UsageError: it cannot be gone on with, its weights do not fit, or programs do not fit the device.
            TooManySkippedError: more pictures could not be read than allowed; what was saved stands.
            FloatingPointError: a loss or gradient is not finite; what was saved stands.
            OSError: the folder cannot be written.
        """
        self.begin()
        self.compile()
        self.fit()
        with contextlib.suppress(StoppedError):
            return None if self.interrupted else self.finish()
        return None

    def begin(self) -> None:
        """Have the first state: fresh, from other weights, or from the checkpoint to go on from."""
        if not is_address(self.folder):  # on every host: one that ended alone would leave the others waiting
            check_writable(self.folder)
        _log.info(str(self.job))
        for name, reason in self.job.skipped.items():
            _log.warning(f"skipped {printable(name)}: {printable(reason)}")
        self._check_share()
        if self._leads:
            self._checkpoints.set_incomplete_aside()
        if self._resume:
            self.done, self.state = from_checkpoint(self._checkpoints, self._about, self.state)
            _log.info(f"resumed at step {self.done} of {self.job.total_steps}")
        elif self._checkpoints.latest_step() is not None:
            raise UsageError(f"{self.folder} already holds a run, begun meanwhile: start again")
        elif self.job.config.init_from:
            self.state = from_weights(self.job.config, self.state)

    def compile(self) -> None:
        """Have every program ready, before anything is written."""

        def told(name: str, ready: Compiled) -> None:
            if name == "step":
                height, width = ready.bucket.shape
                padded = f"batches of {ready.bucket.batch_size}, padded to {height}x{width} pixels"
                _log.info(f"compiled for {padded}: {memory(ready)} a step, {ready.seconds:.1f} s")

        programs = {
            "step": (self._step, self.job.schedule.buckets),
            "forward": (self._evaluator.forward, self._evaluator.buckets),
        }
        with contextlib.suppress(StoppedError):
            compile_programs(programs, self.job.mesh, told, self._interruption.check_apart)
            self._interruption.meet()

    def fit(self) -> None:
        """Run the steps that are left, validating each epoch and saving; wait for the last save."""
        job, opened = self.job, self._open
        journal = Journal(self.folder, self.done, writes=self._leads)
        self._journal = opened.enter_context(contextlib.closing(journal))
        for line in journal.lines:  # of the run that goes on here
            self.skipped |= line.get("skipped", {})
            self.best = max(self.best, merit(line["validation"]) if "validation" in line else -1.0)
        self._bar = opened.enter_context(
            tqdm(
                total=job.total_steps,
                initial=self.done,
                unit="step",
                desc="train",
                mininterval=1,
                disable=not self._leads,
            )
        )
        self._profile = opened.enter_context(Profile(self.folder, self._profiled, self.done))
        if not self._resume:
            self._save(None)
            self._checkpoints.wait()  # what cannot be written is said now, and not when an epoch is lost
        if self._leads:
            with _telling("what the run is"):
                write_description(job, self.folder)
        owed = self._resume and not self.interrupted and not self._journal_has_validation()
        if owed and (srcc := self._validate()) is not None:
            self._save(srcc, again=True)  # now that it is judged
        self._began = time.perf_counter()
        if not self.interrupted:  # while compiling
            with warn_of_compilations():
                self.state = fit(
                    self._step,
                    self.state,
                    job.parts["train"],
                    job.schedule,
                    job.mesh,
                    start=self.done,
                    stop=job.total_steps,
                    after_step=self._after_step,
                )
        self._checkpoints.wait()
        if self.interrupted:
            _log.warning(f"interrupted; saved in {self.folder}")

    def finish(self) -> Agreement:
        """Judge the test part, and write figures, curves and report."""
        job, records = self.job, self.job.parts["test"]
        scores, _, failed = self._evaluator.score(self.state, records)
        self._note_skipped(failed)
        figures = records.agreement(scores)
        if self.validated is None:  # a finished run was resumed; by all hosts, as the program runs on all
            self.validated, _, _ = self._evaluator.score(self.state, job.parts["validation"])
        if self._leads:
            with _telling("metrics.json"):
                write_figures(job, self.folder, figures)
            self._draw()
            with _telling("report.html"):
                write_page(job, self.folder, self.journal, self.validated)
            self._list_skipped(always=True)
        if self.skipped:
            _log.warning(f"skipped {len(self.skipped)} photographs: {self.folder / 'skipped.csv'}")
        return figures

    def _after_step(self, done: int, state: TrainState, metrics: dict[str, Any]) -> bool:
        """Note a step, and validate and save where it is time; whether to stop."""
        job, config = self.job, self.job.config
        self.done, self.state = done, state
        self._seen += metrics["pictures"]
        failed = {job.parts["train"].ids[index]: reason for index, reason in metrics.pop("failed").items()}
        self._note_skipped(failed)
        self._check_share()
        self.journal.write({"step": done, **metrics, **({"skipped": failed} if failed else {})})
        self._bar.set_postfix_str(
            f"loss {metrics['loss']:.3f}, accuracy {metrics['accuracy']:.2f}, "
            f"{self._seen / (time.perf_counter() - self._began):.1f} images/s",
            refresh=False,
        )
        self._bar.update()
        self._profile.after(done)
        ends = done == job.total_steps
        srcc = self._validate() if self._is_judged(done) else None
        stopping = self._interruption.stops_here()  # asked once: what stops is saved
        minutes = (time.monotonic() - self._saved_at) / 60
        due = config.save_minutes is not None and jax.process_count() == 1 and minutes >= config.save_minutes
        if done % config.save_every == 0 or due or ends or stopping or srcc is not None:
            self._save(srcc)
        return stopping

    def _validate(self) -> float | None:
        """The SRCC, where it is the best so far."""
        job, schedule = self.job, self.job.schedule
        try:
            result, self.validated, failed = self._evaluator.validate(self.state, job.parts["validation"])
        except StoppedError:  # the run that goes on from here does it first
            return None
        self._note_skipped(failed)
        self._check_share()
        skipped = {"skipped": failed} if failed else {}
        self.journal.write({"step": self.done, "validation": result, **skipped})
        srcc = result["srcc"]
        _log.info(
            f"epoch {schedule.epochs_done(self.done):g}: validation loss {result['loss']:.3f}, "
            f"accuracy {result['accuracy']:.1%}, SRCC {'nan' if srcc is None else f'{srcc:.3f}'}"
        )
        if self._leads and time.monotonic() - self._drawn_at >= _REDRAWN_AFTER:
            self._draw()
            self._drawn_at = time.monotonic()
        if merit(result) <= self.best:
            return None
        self.best = merit(result)
        return self.best

    def _is_judged(self, done: int) -> bool:
        """Whether the validation part is judged after so many steps."""
        return done == self.job.total_steps or self.job.schedule.epochs_done(done).is_integer()

    def _journal_has_validation(self) -> bool:
        """Whether what stands now was judged, or is not to be."""
        judged = any(line["step"] == self.done and "validation" in line for line in self.journal.lines)
        return judged or not self.done or not self._is_judged(self.done)

    def _check_interruption(self, *_) -> None:
        self._interruption.check()

    def _draw(self) -> None:
        with _telling("curves.png"):
            if not write_curves(self.journal, self.job.schedule, self.folder):
                _log.warning("curves.png is not drawn: pip install 'spp_jax[plots]'")

    def _save(self, srcc: float | None, *, again: bool = False) -> None:
        if self._checkpoints.latest_step() == self.done and not again:
            return
        self.journal.flush()
        self._checkpoints.save(self.done, self.state.model, training_part(self.state), self._about, srcc)
        self._saved_at = time.monotonic()

    def _note_skipped(self, failed: dict[str, str]) -> None:
        for name in failed.keys() - self.skipped.keys():
            _log.warning(f"skipped {printable(name)}: {printable(failed[name])}")
        self.skipped.update(failed)

    def _check_share(self) -> None:
        skipped, pictures, allowed = len(self.skipped), self.job.pictures, self.job.config.max_failed
        if skipped > allowed * pictures:
            raise TooManySkippedError(
                f"{skipped} of {pictures} pictures had to be skipped, more than max_failed {allowed:g} "
                "allows; what was saved stands"
            )

    def _list_skipped(self, *, always: bool = False) -> None:
        if always or (self.skipped and self._leads and self._journal):
            with _telling("skipped.csv"):
                write_skipped(self.folder / "skipped.csv", self.skipped)


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    """Within it is done what only tells: where that fails, it is said, and the run goes on."""
    try:
        yield
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError) as error:
        _log.warning(f"{what} cannot be written: {' '.join(str(error).split())}")
