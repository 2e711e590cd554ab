"""What a run leaves in its folder for people: what it was, its plan, its curves, its figures, its page."""

import contextlib
import importlib.metadata
import io
import json
import logging
import platform
import subprocess
import tempfile
from pathlib import Path

import jax
import numpy as np

from spp_jax.data.schedule import Schedule
from spp_jax.metrics import Agreement
from spp_jax.run.job import Job
from spp_jax.run.journal import Journal, draw_curves
from spp_jax.run.report import write_report

__all__ = ["check_writable", "write_curves", "write_description", "write_figures", "write_page"]

_log = logging.getLogger(__name__)


def check_writable(folder: Path) -> None:
    """Raise OSError where nothing can be written, before any work is done; leaves nothing behind."""
    nearest = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass


def write_description(job: Job, folder: Path) -> None:
    """``run.json``: what the run is; ``buckets.json`` and ``.png``: its plan, also for other runs."""
    (folder / "run.json").write_text(json.dumps(_facts(job) | job.config.to_dict(), indent=2) + "\n")
    if (folder / "buckets.json").exists():
        return
    (folder / "buckets.json").write_text(job.schedule.plan.to_json() + "\n")
    sizes = np.concatenate([records.sizes for records in job.parts.values()])
    with contextlib.suppress(ModuleNotFoundError):  # said once, where the curves are drawn
        drawn = io.BytesIO()
        job.schedule.plan.draw(sizes, drawn, title=job.config.data)
        (folder / "buckets.png").write_bytes(drawn.getvalue())


def write_curves(journal: Journal, schedule: Schedule, folder: Path) -> bool:
    """``curves.png``; whether there is something to draw with."""
    try:
        (folder / "curves.png").write_bytes(draw_curves(journal.lines, schedule.epochs_done))
    except ModuleNotFoundError:
        return False
    except OSError as error:  # a picture less is no reason to lose what was trained
        _log.warning(f"{folder / 'curves.png'} cannot be written: {error}")
    return True


def write_figures(job: Job, folder: Path, figures: Agreement) -> None:
    """``metrics.json``: how the scores of the test part agree with its labels."""
    config = job.config
    described = {"data": config.data, "split": "test", "protocol": config.protocol, "fold": config.fold}
    (folder / "metrics.json").write_text(json.dumps(described | figures.to_dict(), indent=2) + "\n")


def write_page(job: Job, folder: Path, journal: Journal, scores: np.ndarray) -> None:
    """``report.html``, over the validation part and its scores."""
    config = job.config
    write_report(
        folder / "report.html",
        title=f"{config.data}, {config.model}, fold {config.fold}: the validation part",
        facts={name: str(value) for name, value in (_facts(job) | config.to_dict()).items()},
        lines=journal.lines,
        epochs_done=job.schedule.epochs_done,
        records=job.parts["validation"],
        scores=scores,
    )


def _facts(job: Job) -> dict[str, str | int | float]:
    """Of this run, besides its configuration: what it ran on, and in which versions."""
    versions = {
        name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")
    }
    return {
        "revision": _revision(),
        "python": platform.python_version(),
        **versions,
        "devices": f"{job.mesh.size} {job.mesh.devices.flat[0].device_kind}",
        "processes": jax.process_count(),
        "bucket_plan": str(job.schedule.plan),
        "total_steps": job.total_steps,
        "mean_batch": job.schedule.mean_batch,
    }


def _revision() -> str:
    """Of this package where it is a checkout, else its version."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError):
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", __file__], cwd=here, capture_output=True
        )
        if tracked.returncode == 0:
            git = subprocess.run(command, cwd=here, capture_output=True, text=True)
            return git.stdout.strip() or "unknown"
    return importlib.metadata.version("spp_jax")
