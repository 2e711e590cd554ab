"""Orbax, and nothing else knows Orbax: a run's state on disk, and all that rebuilds its model."""

import contextlib
import gc
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from spp_jax.addresses import is_address
from spp_jax.buckets import BucketPlan
from spp_jax.config import RunConfig
from spp_jax.errors import UsageError
from spp_jax.registry import fingerprint

__all__ = ["About", "Checkpoints"]

_log = logging.getLogger(__name__)
_FORMAT = 2
_NOT_JUDGED = -2.0  # below every correlation: Orbax complains where there is no figure
_KEPT = 2  # of the latest; and the best
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_PARTS = ("about", "model", "training")
_DESCRIBED = {"format", "config", "plan", "records", "marks", "parts", "arrays", "digest"}
_T = TypeVar("_T")


class About(NamedTuple):
    """What a checkpoint says of its run.

    Attributes:
        config: of the run.
        plan: its buckets and batch sizes.
        records: digest of the training records.
        marks: the score that each mark of their votes stands for; empty where they are not used.
        parts: for a model, loss or reduction that is no part of this package, a digest of its source file.
    """

    config: RunConfig
    plan: BucketPlan
    records: str
    marks: tuple[float, ...] = ()
    parts: Mapping[str, str] = MappingProxyType({})

    @classmethod
    def of(cls, config: RunConfig, plan: BucketPlan, records: str, marks: tuple[float, ...] = ()) -> "About":
        """What a run says of itself now, its foreign parts as they are on the disk."""
        digests = {
            name: fingerprint(name) for name in (config.model, *config.loss.split("+"), *config.reduce)
        }
        foreign = {name: digest for name, digest in digests.items() if digest is not None}
        return cls(config, plan, records, marks, foreign)

    def check_parts(self) -> None:
        """Warn of each foreign part that has changed since.

        Raises:
            UsageError: one is gone.
        """
        for name, digest in self.parts.items():
            if fingerprint(name) != digest:
                _log.warning(f"{name} has changed since this checkpoint was written")


class _OtherVersionError(ValueError):
    """This version cannot read it: the reason, and whether that is damage."""


class _OtherModelError(ValueError):
    """It is not damaged: what it is to be restored to is another model's."""


class _Manager(ocp.CheckpointManager):
    """Orbax's, less its own agreement of hosts to stop: the run has one, at more moments than a save is."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run, in a folder. Use as a context: leaving it waits for the last save.

    A checkpoint holds two parts, ``model`` (all variables) and ``training`` (what else it takes to go
    on), and the :class:`About`. It appears under its final name only when complete. The latest are kept,
    and the one that judged the validation part best. On several hosts every one makes the same calls.
    """

    def __init__(self, folder: Path):
        """Open a folder; it is made on the first save, and need not exist before."""
        self.folder = folder
        self._path = folder / "checkpoints"
        if not is_address(folder):
            self._path = self._path.absolute()
        self._manager: ocp.CheckpointManager | None = None
        self._told: set[int] = set()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *exception) -> None:
        if self._manager is not None and kind is None:
            self._written(self._manager.close)
        elif self._manager is not None:
            with contextlib.suppress(Exception):  # it says again what has been said
                self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None where there is none.

        One that lacks a whole part, as a crash may leave it on some file systems, is passed over with a
        warning where there is another that lacks none.
        """
        steps = self._steps()
        lacking = {step: [p for p in _PARTS if not (self._path / str(step) / p).is_dir()] for step in steps}
        found = next((step for step in steps if not lacking[step]), steps[0] if steps else None)
        for step in steps:
            if found is not None and step > found and step not in self._told:
                path = self._path / str(step)
                _log.warning(f"{path} is incomplete, it has no {lacking[step][0]}: {found} is taken")
                self._told.add(step)
        return found

    def set_incomplete_aside(self) -> None:
        """Put what :meth:`latest_step` passed over, and what a kill left half written, out of the way.

        Only for the one process that writes here: steps beyond the newest complete one go to the folder
        ``incomplete``, else they could not be saved again.
        """
        latest = self.latest_step()
        for step in self._steps():
            if latest is None or step <= latest:
                break
            aside = self._path.parent / "incomplete" / str(step)
            aside.parent.mkdir(exist_ok=True)
            if aside.exists():
                shutil.rmtree(aside)
            (self._path / str(step)).rename(aside)
            _log.warning(f"{self._path / str(step)} was moved to {aside}")
        if not is_address(self.folder) and self._path.is_dir():
            for partial in self._path.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(partial, ignore_errors=True)
        if self._manager is not None:
            self._manager.reload()

    def best_step(self) -> int | None:
        """The step of the checkpoint with the highest validation SRCC; None where none was validated."""
        step = self._open().best_step() if self._path.is_dir() else None
        found: Any = None if step is None else self._open().metrics(step)
        return None if found is None or _srcc(found) == _NOT_JUDGED else step

    def about(self) -> About:
        """What the newest checkpoint says of its run.

        Raises:
            UsageError: there is no checkpoint, it is damaged, or this version did not write it.
        """
        return self._read(self._about)

    def _about(self, step: int) -> About:
        fields = self._described(step)
        changed = "digest" in fields and fields["digest"] != _digest_of(fields)
        try:
            if fields["format"] != _FORMAT:
                raise ValueError(f"format {fields['format']}, expected {_FORMAT}")
            found = _parsed(fields)
        except Exception as error:  # foreign text raises anything
            raise _OtherVersionError(_line(error), changed) from None
        if changed or fields.keys() - _DESCRIBED:
            raise ValueError("what it says of its run has changed since it was written")
        return found

    def _described(self, step: int) -> dict[str, Any]:
        """What is saved under ``about``, as it is there."""
        fields = self._open().restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        if not isinstance(fields, dict):
            raise ValueError("what it says of its run is no JSON object")
        return fields

    def save(
        self, step: int, model: nnx.State, training: Any, about: About, srcc: float | None = None
    ) -> None:
        """Save in the background what stands after ``step`` steps; older ones are pruned.

        The arrays are copied before this returns. With them goes a digest of each, which restoring checks.
        The newest may be saved again, such as when it was judged since: while that is under way the one
        before it stands.

        Args:
            step: how many are done.
            model: all variables to judge with.
            training: what else it takes to go on.
            about: the run.
            srcc: of the validation part, where it was just judged.

        Raises:
            OSError: this one or the one before could not be written.
        """
        described = {
            "format": _FORMAT,
            "config": about.config.to_dict(),
            "plan": about.plan.to_json(),
            "records": about.records,
            "marks": about.marks,
            "parts": dict(about.parts),
        }
        saved = {"model": nnx.to_pure_dict(model), "training": _arrays(training)}
        described["arrays"] = {part: _digests(tree) for part, tree in saved.items()}
        described["digest"] = _digest_of(described)
        arguments = ocp.args.Composite(
            **{part: ocp.args.StandardSave(tree) for part, tree in saved.items()},
            about=ocp.args.JsonSave(described),
        )
        judged = {"srcc": _NOT_JUDGED if srcc is None else srcc}
        self._written(lambda: self._replace(step, judged, arguments))

    def _replace(self, step: int, judged: dict[str, float], arguments: Any) -> None:
        manager = self._open()
        if manager.latest_step() == step and len(manager.all_steps()) > 1:
            manager.wait_until_finished()
            manager.delete(step)
        manager.save(step, metrics=judged, args=arguments)

    def wait(self) -> None:
        """Until the last save is complete.

        Raises:
            OSError: it could not be written.
        """
        self._written(self._open().wait_until_finished)

    def _written(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except (ValueError, RuntimeError, OSError) as error:  # which of these depends on the file system
            said = " ".join(str(error).split())
            known = [reason for reason in _FULL if reason in said]
            reason = known[0] if known else said[:300]
            raise OSError(f"no checkpoint can be written to {self._path}: {reason}") from None

    def restore_model(self, like: nnx.State) -> nnx.State:
        """The newest model's variables.

        Args:
            like: a state of the same structure, shapes and dtypes. What it has on devices is put on these;
                where it has shapes alone, NumPy arrays are given, which takes a third of the time.

        Raises:
            UsageError: there is no checkpoint, it is damaged, or of another model: names what differs.
        """
        pure = nnx.to_pure_dict(like)
        restored = nnx.clone(like)
        nnx.replace_by_pure_dict(restored, self._read(lambda step: self._restore(step, "model", pure)))
        return restored

    def model_variables(self) -> dict[str, Any]:
        """The newest model's variables by their paths, to begin another run with.

        Raises:
            UsageError: there is no checkpoint, or it is damaged.
        """
        return _flat(self._read(lambda step: self._restore(step, "model")))

    def restore_training(self, like: Any) -> Any:
        """The newest training part; ``like`` and errors as for :meth:`restore_model`."""
        leaves = self._read(lambda step: self._restore(step, "training", _arrays(like)))
        return jax.tree.unflatten(jax.tree.structure(like), leaves.values())

    def _restore(self, step: int, part: str, like: Any = None) -> Any:
        """A part, which must be like this; None: as it was saved."""
        saved = self._open().item_metadata(step)[part]
        tree = getattr(saved, "tree", saved)
        if not jax.tree.leaves(tree):
            raise ValueError("what it says of its arrays is gone")
        if like is None:
            # NumPy's: no device that it was saved on need be there, and each host reads for itself.
            abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)
        else:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
            _compare(part, tree, abstract)
            abstract = jax.tree.map(
                lambda x: np.empty(x.shape, x.dtype) if x.sharding is None else x, abstract
            )
        args = ocp.args.Composite(**{part: ocp.args.StandardRestore(abstract)})
        found = self._open().restore(step, args=args)[part]
        known = self._described(step).get("arrays", {}).get(part, {})  # which older ones lack
        for path, digest in _digests(found).items():
            if known.get(path, digest) != digest:
                raise ValueError(f"{part}/{path} is not what was saved")
        return found

    def _read(self, read: Callable[[int], _T]) -> _T:
        """Read from the newest, and from one that is newer by then where a run beside pruned this one."""
        step = self._latest()
        while True:
            try:
                return read(step)
            except Exception as error:  # damage raises anything
                with contextlib.suppress(Exception):
                    self._open().reload()
                newest = self.latest_step()
                refusal = "" if newest is not None and newest > step else self._refusal(step, error)
            if newest is None or refusal:
                _collect_failed_reads()
                raise UsageError(refusal)
            step = newest

    def _refusal(self, step: int, error: Exception) -> str:
        """What is wrong with a step, and which to take in its place."""
        path = self._path / str(step)
        said, damaged = f"{path} cannot be restored: {_line(error)}", True
        if isinstance(error, _OtherVersionError):
            reason, damaged = error.args
            said = f"{path} is no checkpoint of this version of spp_jax: {reason}"
        if not damaged or isinstance(error, _OtherModelError):
            return said
        whole = next((other for other in self._steps() if other < step and self._is_whole(other)), None)
        if whole is None:
            return f"{said}; it is damaged, and there is no step before it that is whole"
        return f"{said}; it is damaged. Step {whole} is whole: remove {path} to use that"

    def _is_whole(self, step: int) -> bool:
        try:
            self._about(step)
            for part in ("model", "training"):
                self._restore(step, part)
        except Exception:  # as above
            return False
        return True

    def _steps(self) -> list[int]:
        """All that are under their final names, the newest first."""
        if not self._path.is_dir():
            return []
        return sorted(self._open().all_steps(), reverse=True)

    def _latest(self) -> int:
        step = self.latest_step()
        if step is None:
            raise UsageError(
                f"{self.folder} holds no checkpoint of a run: give the folder that train.py wrote (its --out)"
            )
        return step

    def _check_judgements(self) -> None:
        """Refuse a damaged figure of any step, on which Orbax opens none."""
        for path in self._path.glob("*/metrics/metrics") if self._path.is_dir() else ():
            try:
                float(_srcc(json.loads(path.read_text())))
            except FileNotFoundError:  # pruned by the run that writes here
                continue
            except (ValueError, TypeError, AttributeError, OSError) as error:
                raise UsageError(
                    f"{path.parent.parent} is damaged: {path} cannot be read: {_line(error)}. It only says "
                    f"how that step was judged: remove {path.parent} to go on without"
                ) from None

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._check_judgements()
            self._manager = _Manager(
                self._path,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=AnyPreservationPolicy(
                        [
                            LatestN(_KEPT),
                            BestN(get_metric_fn=_srcc, n=1),
                        ]
                    ),
                    best_fn=_srcc,
                    create=True,
                ),
                # Named beforehand: without, what a new process finds on disk has no metadata to compare.
                item_handlers={
                    "model": ocp.StandardCheckpointHandler(),
                    "training": ocp.StandardCheckpointHandler(),
                    "about": ocp.JsonCheckpointHandler(),
                },
            )
        return self._manager


def _srcc(metrics: dict[str, float]) -> float:
    return metrics.get("srcc", _NOT_JUDGED)


def _arrays(tree: Any) -> dict[str, Any]:
    """The leaves under their paths, in order: a structure that Orbax keeps as it is."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {f"{i:04d}{jax.tree_util.keystr(path)}": leaf for i, (path, leaf) in enumerate(leaves)}


def _compare(part: str, saved: Any, expected: Any) -> None:
    have, want = (
        {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in _flat(tree).items()}
        for tree in (saved, expected)
    )
    for path in sorted(set(have) | set(want)):
        if have.get(path) != want.get(path):
            raise _OtherModelError(
                f"it is of another model: {part}/{path} is {have.get(path, 'absent')} there and "
                f"{want.get(path, 'absent')} here"
            )


def _parsed(fields: dict[str, Any]) -> About:
    """What a checkpoint says of its run; anything is raised where it is not that."""
    marks, parts = fields["marks"], fields.get("parts", {})  # which the first ones of this format lack
    if not all(isinstance(mark, int | float) for mark in marks):
        raise ValueError("its marks are not numbers")
    if not isinstance(fields["records"], str) or not all(isinstance(name, str) for name in parts.values()):
        raise ValueError("a digest is no text")
    plan = BucketPlan.from_json(fields["plan"])
    return About(RunConfig.from_dict(fields["config"]), plan, fields["records"], tuple(marks), parts)


def _collect_failed_reads() -> None:
    """Free the reads that Orbax left unfinished: each would print a page about itself when collected."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _digests(tree: Any) -> dict[str, str]:
    """Of each array by its path, a digest of dtype, shape and values: 32 hexadecimal digits of SHA-256.

    On several hosts, an array that is divided among them has none, as no host has all of it.
    """

    def digest(leaf: Any) -> str:
        if isinstance(leaf, jax.Array):
            leaf = leaf.addressable_data(0) if leaf.is_fully_replicated else jax.device_get(leaf)
        values = np.ascontiguousarray(leaf)
        found = hashlib.sha256(f"{values.dtype} {np.shape(leaf)}".encode())
        found.update(values.view(np.uint8).reshape(-1).data if values.size else b"")
        return found.hexdigest()[:32]

    def whole(leaf: Any) -> bool:
        return not isinstance(leaf, jax.Array) or leaf.is_fully_replicated or leaf.is_fully_addressable

    leaves = {path: leaf for path, leaf in _flat(tree).items() if whole(leaf)}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "digest") as pool:
        return dict(zip(leaves, pool.map(digest, leaves.values()), strict=True))


def _digest_of(fields: dict[str, Any]) -> str:
    """Of all that a checkpoint says, but this."""
    others = {name: value for name, value in fields.items() if name != "digest"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()[:32]


def _flat(tree: Any) -> dict[str, Any]:
    """The leaves by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _line(error: Exception) -> str:
    said = str(error).split("See full TensorStore details")[0]
    return " ".join(said.split())[:300].rstrip(".")
