"""Orbax, and nothing else knows Orbax: a run's state on disk, and all that rebuilds its model."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

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


class About(NamedTuple):
    """What a checkpoint says of its run.

    Attributes:
        config: of the run.
        plan: its buckets and batch sizes.
        records: digest of the training records.
        marks: the score that each mark of their votes stands for; empty where they are not used.
        parts: for a model or a loss that is no part of this package, a digest of its source file.
    """

    config: RunConfig
    plan: BucketPlan
    records: str
    marks: tuple[float, ...] = ()
    parts: Mapping[str, str] = MappingProxyType({})

    @classmethod
    def of(cls, config: RunConfig, plan: BucketPlan, records: str, marks: tuple[float, ...] = ()) -> "About":
        """What a run says of itself now, its foreign parts as they are on the disk."""
        digests = {name: fingerprint(name) for name in (config.model, *config.loss.split("+"))}
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

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *exception) -> None:
        if self._manager is not None and kind is None:
            self._written(self._manager.close)
        elif self._manager is not None:
            with contextlib.suppress(Exception):  # it says again what has been said
                self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None where there is none."""
        return self._open().latest_step() if self._path.is_dir() else None

    def best_step(self) -> int | None:
        """The step of the checkpoint with the highest validation SRCC; None where none was validated."""
        step = self._open().best_step() if self._path.is_dir() else None
        found: Any = None if step is None else self._open().metrics(step)
        return None if found is None or _srcc(found) == _NOT_JUDGED else step

    def reached_preemption(self, step: int) -> bool:
        """Whether the hosts have agreed to stop after this step, as one of them was told to."""
        return self._open().reached_preemption(step)

    def about(self) -> About:
        """What the newest checkpoint says of its run.

        Raises:
            UsageError: there is no checkpoint, or this version did not write it.
        """
        step = self._latest()
        try:
            fields = self._open().restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
            fields = fields["about"]
            if fields["format"] != _FORMAT:
                raise UsageError(f"format {fields['format']}, expected {_FORMAT}")
            return About(
                RunConfig.from_dict(fields["config"]),
                BucketPlan.from_json(fields["plan"]),
                fields["records"],
                tuple(fields["marks"]),
                fields.get("parts", {}),  # which the first checkpoints of this format lack
            )
        except (KeyError, TypeError, ValueError, OSError, UsageError) as error:
            raise UsageError(
                f"{self._path / str(step)} is no checkpoint of this version of spp_jax: {_line(error)}"
            ) from None

    def save(
        self, step: int, model: nnx.State, training: Any, about: About, srcc: float | None = None
    ) -> None:
        """Save in the background what stands after ``step`` steps; older ones are pruned.

        The arrays are copied before this returns.

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
        self._written(
            lambda: self._open().save(
                step,
                metrics={"srcc": _NOT_JUDGED if srcc is None else srcc},
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(nnx.to_pure_dict(model)),
                    training=ocp.args.StandardSave(_arrays(training)),
                    about=ocp.args.JsonSave(described),
                ),
            )
        )

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
            known = [
                reason for reason in ("No space left on device", "Disk quota exceeded") if reason in said
            ]
            reason = known[0] if known else said[:300]
            raise OSError(f"no checkpoint can be written to {self._path}: {reason}") from None

    def restore_model(self, like: nnx.State) -> nnx.State:
        """The newest model's variables.

        Args:
            like: a state of the same structure, shapes and dtypes.

        Raises:
            UsageError: there is no checkpoint, it is damaged, or of another model: names what differs.
        """
        pure = nnx.to_pure_dict(like)
        restored = nnx.clone(like)
        nnx.replace_by_pure_dict(restored, self._restore("model", pure))
        return restored

    def model_variables(self) -> dict[str, Any]:
        """The newest model's variables by their paths, to begin another run with.

        Raises:
            UsageError: there is no checkpoint, or it is damaged.
        """
        return _flat(self._restore("model"))

    def restore_training(self, like: Any) -> Any:
        """The newest training part; ``like`` and errors as for :meth:`restore_model`."""
        leaves = self._restore("training", _arrays(like))
        return jax.tree.unflatten(jax.tree.structure(like), leaves.values())

    def _restore(self, part: str, like: Any = None) -> Any:
        """The newest of a part, which must be like this; None: as it was saved."""
        step = self._latest()
        try:
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
            args = ocp.args.Composite(**{part: ocp.args.StandardRestore(abstract)})
            return self._open().restore(step, args=args)[part]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise UsageError(f"{self._path / str(step)} cannot be restored: {_line(error)}") from None

    def _latest(self) -> int:
        step = self.latest_step()
        if step is None:
            raise UsageError(
                f"{self.folder} holds no checkpoint of a run: give the folder that train.py wrote (its --out)"
            )
        return step

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._manager = ocp.CheckpointManager(
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
    return metrics["srcc"]


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
            raise ValueError(
                f"it is of another model: {part}/{path} is {have.get(path, 'absent')} there and "
                f"{want.get(path, 'absent')} here"
            )


def _flat(tree: Any) -> dict[str, Any]:
    """The leaves by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
