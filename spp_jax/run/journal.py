"""What a run writes down as it goes: `metrics.jsonl`, TensorBoard's events, `skipped.csv`, `curves.png`."""

import contextlib
import csv
import io
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spp_jax.addresses import is_address
from spp_jax.names import cell

__all__ = ["Journal", "draw_curves", "read_journal", "write_skipped"]


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
        folder.mkdir(parents=True, exist_ok=True)
        if is_address(folder):
            return
        whole = self._path.with_suffix(".tmp")
        whole.write_text(self._text())
        os.replace(whole, self._path)
        self._file = self._path.open("a")
        with contextlib.suppress(ModuleNotFoundError):  # an extra: the journal has all of it
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line."""
        self.lines.append(line)
        if self._file:
            self._file.write(json.dumps(line) + "\n")
        if self._board:
            checked = "validation" in line
            for name, value in (line["validation"] if checked else line).items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(
                        f"{'validation' if checked else 'train'}/{name}", value, line["step"]
                    )

    def flush(self) -> None:
        """Have everything on disk; called before a checkpoint, which must never be ahead of it."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
            if self._board:
                self._board.flush()
        elif self._writes:
            self._path.write_text(self._text())

    def close(self) -> None:
        """Flush and close the file."""
        self.flush()
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()

    def _text(self) -> str:
        return "".join(json.dumps(line) + "\n" for line in self.lines)


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's journal; a last line that a kill cut short is left out."""
    path = folder / "metrics.jsonl"
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


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
