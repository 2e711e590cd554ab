"""What a run writes down as it goes: `metrics.jsonl`, TensorBoard's events, `skipped.csv`, `curves.png`."""

import contextlib
import csv
import io
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from spp_jax.addresses import is_address, writing
from spp_jax.names import cell
from spp_jax.whole_files import write_whole

__all__ = ["Journal", "draw_curves", "read_journal", "write_skipped"]


_log = logging.getLogger(__name__)


class Journal:
    """The metrics of a run, one JSON object a line, each with the number of steps done.

    Step lines hold ``loss``, ``accuracy``, ``grad_norm`` and ``pictures``; validation lines hold
    ``validation``, an object. Opened at a step, it forgets the lines beyond: a run resumed there writes
    them again, with no gap and no repeat. The same figures go to TensorBoard, in the folder
    ``tensorboard``, where the run is on a disk.
    """

    def __init__(self, folder: Path, step: int, *, writes: bool = True):
        """Open the journal of the run in ``folder``, which is made if need be.

        Args:
            folder: of the run; at an address the file is written anew at each flush, as none grows there.
            step: how many steps are done.
            writes: False: only read and remember, on all hosts but one.
        """
        self._path = folder / "metrics.jsonl"
        self.lines = [line for line in read_journal(folder) if line["step"] <= step]
        self._writes, self._file, self._board = writes, None, None
        if not writes:
            return
        self._tell_missing(step)
        folder.mkdir(parents=True, exist_ok=True)
        if is_address(folder):
            return
        with writing(self._path):
            write_whole(self._path, self._text().encode())
        self._file = self._path.open("a")
        self._board = _Board(folder / "tensorboard", step)

    def _tell_missing(self, step: int) -> None:
        have = {line["step"] for line in self.lines if "loss" in line}
        missing = sorted(set(range(1, step + 1)) - have)
        if missing:
            _log.warning(
                f"{self._path} lacks {len(missing)} of the {step} steps done, such as step {missing[0]}: the "
                "figures of these are lost, the parameters are not"
            )

    def write(self, line: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            OSError: it cannot be written, here as in the other methods.
        """
        self.lines.append(line)
        if self._file:
            with writing(self._path):
                self._file.write(json.dumps(line) + "\n")
        if self._board:
            self._board.write(line)

    def flush(self) -> None:
        """Have everything on disk; called before a checkpoint, which must never be ahead of it."""
        if self._file:
            with writing(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())
            if self._board:
                self._board.flush()
        elif self._writes:
            with writing(self._path):
                self._path.write_text(self._text())

    def close(self) -> None:
        """Flush and close the file."""
        try:
            self.flush()
        finally:
            if self._file:
                with contextlib.suppress(OSError):  # flushing said so
                    self._file.close()
            if self._board:
                self._board.close()

    def _text(self) -> str:
        return "".join(json.dumps(line) + "\n" for line in self.lines)


class _Board:
    """TensorBoard's events of a run. It only tells: what fails here is said once, and nothing stops.

    Written as they come, by no thread: tensorboardX's own ends, and then hangs who writes, when the clock
    goes back.
    """

    def __init__(self, folder: Path, step: int):
        """Open a file of events; those after this step, of a run that is gone on with, are forgotten."""
        self._events: Any = None
        with self._telling():
            try:
                from tensorboardX.event_file_writer import EventsWriter
            except ModuleNotFoundError:  # an extra: the journal has all of it
                return
            folder.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(folder / "events"))
            if step:
                from tensorboardX.proto import event_pb2

                protocol: Any = event_pb2
                started = protocol.SessionLog(status=protocol.SessionLog.START)
                event = protocol.Event(step=step + 1, session_log=started, wall_time=time.time())
                self._events.write_event(event)

    def write(self, line: dict[str, Any]) -> None:
        if self._events is None:
            return
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import scalar

        checked = "validation" in line
        for name, value in (line["validation"] if checked else line).items():
            if name != "step" and isinstance(value, int | float) and self._events:
                tag = f"{'validation' if checked else 'train'}/{name}"
                with self._telling():
                    event = Event(step=line["step"], summary=scalar(tag, value), wall_time=time.time())
                    self._events.write_event(event)

    def flush(self) -> None:
        with self._telling():
            if self._events:
                self._events.flush()

    def close(self) -> None:
        with self._telling():
            if self._events:
                self._events.close()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            events, self._events = self._events, None
            with contextlib.suppress(Exception):
                if events:
                    events.close()
            _log.warning(f"TensorBoard's events are not written any more: {error}")


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's journal, each step and each validation once.

    A last line that a kill cut short is left out, and, with a warning, what else is no line of a journal.
    """
    path = folder / "metrics.jsonl"
    texts = path.read_text(errors="replace").splitlines() if path.is_file() else []
    lines: dict[tuple[int, bool], dict[str, Any]] = {}
    for number, text in enumerate(texts, 1):
        line: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
        if not _is_line(line):
            if number < len(texts):
                _log.warning(f"{path}, line {number}, is no line of a journal: it is left out")
            continue
        lines.setdefault((line["step"], "validation" in line), line)
    return sorted(lines.values(), key=lambda line: line["step"])


def _is_line(line: Any) -> bool:
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return False
    skipped, judged = line.get("skipped", {}), line.get("validation")
    if not isinstance(skipped, dict) or not all(isinstance(reason, str) for reason in skipped.values()):
        return False
    if "validation" in line:
        return (
            isinstance(judged, dict)
            and "loss" in judged
            and all(_is_number(judged.get(name)) for name in ("loss", "accuracy", "srcc"))
        )
    named = ("loss", "accuracy", "pictures")
    return all(name in line and _is_number(line[name]) for name in named)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def write_skipped(path: Path, skipped: dict[str, str]) -> None:
    """List the photographs that were skipped: columns ``photograph`` and ``reason``.

    Names are escaped as :func:`spp_jax.names.cell` does it, so that a spreadsheet runs none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["photograph", "reason"])
    writer.writerows((cell(name), cell(reason)) for name, reason in sorted(skipped.items()))
    path.write_bytes(text.getvalue().encode())


def draw_curves(lines: list[dict[str, Any]], epochs_done: Callable[[int], float]) -> bytes:
    """Accuracy and loss by epoch, training and validation: a PNG.

    Args:
        lines: of a :class:`Journal`.
        epochs_done: of a number of steps; training figures are averaged over an epoch, weighted by
            pictures.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [line for line in lines if "loss" in line]
    checks = [line for line in lines if "validation" in line]
    by_epoch = itertools.groupby(steps, lambda line: int(epochs_done(line["step"] - 1)))
    epochs = [list(epoch) for _, epoch in by_epoch]
    at = [epochs_done(epoch[-1]["step"]) for epoch in epochs]
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        means = [
            np.average([s[name] for s in epoch], weights=[max(s["pictures"], 1e-9) for s in epoch])
            for epoch in epochs
        ]
        axes.plot(at, means, "o-", markersize=3, label="training")
        axes.plot(
            [epochs_done(check["step"]) for check in checks],
            [check["validation"][name] for check in checks],
            "s--",
            markersize=3,
            label="validation",
        )
        axes.set(title=f"Model {name}", xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    file = io.BytesIO()
    figure.savefig(file, dpi=120, format="png")
    return file.getvalue()
