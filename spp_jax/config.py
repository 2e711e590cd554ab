"""The frozen dataclasses that say everything about a run; a checkpoint carries them.

Every value is hashable, so a configuration can be a static argument, and JSON can hold it. The command
line is made from the same fields: their documentation is the help text.
"""

import dataclasses
import json
from typing import Any

__all__ = ["RunConfig", "UsageError"]


class UsageError(Exception):
    """The user asked for something that cannot be; the message is one line and says what to do."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What decides a training run's result, together with its records."""

    data: str = "distorted_photos"
    """Data set."""
    fold: int = 0
    """Which of the folds is the test part; every photograph is in exactly one."""
    model: str = "compact"
    """Network: a name that spp_jax.list_models() gives."""
    levels: tuple[int, ...] = (1, 2, 4)
    """The pyramid: bins per side, level by level."""
    epochs: int = 30
    """Passes over the training part."""
    steps: int | None = None
    """Stop after this many steps instead; the learning rate's schedule ends there too."""
    buckets: int = 6
    """At most this many padded shapes, and so at most this many compilations of the step."""
    pixels_per_step: int = 300_000
    """Padded pixels of a batch, over all devices. Bounds memory and evens out the steps."""
    batch_multiple: int = 1
    """Batch sizes are multiples of this: give the number of devices, and none has idle rows."""
    shape_multiple: int = 8
    """Sides of the padded shapes are multiples of this many pixels."""
    both_orientations: bool = True
    """Portraits go through the programs compiled for landscapes, turned: fewer shapes for less padding.
    Exact; needs a network whose windows and levels are square."""
    learning_rate: float = 1e-3
    """Peak of the learning rate (AdamW, linear warm-up, then cosine)."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.05
    """AdamW's decoupled weight decay, per step, times the learning rate."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    flip: bool = True
    """Mirror half of the training pictures, anew in every epoch."""
    seed: int = 0
    """Of parameters, order and mirroring."""
    save_every: int = 200
    """Steps between checkpoints."""

    def __post_init__(self):
        """Refuse values that mean nothing, before any work is done.

        Raises:
            UsageError: naming the field, the value and what it may be.
        """
        for name in (
            "epochs",
            "buckets",
            "pixels_per_step",
            "batch_multiple",
            "shape_multiple",
            "save_every",
        ):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("steps", self.steps is None or self.steps >= 1, "at least 1")
        self._require("levels", bool(self.levels) and min(self.levels) >= 1, "one or more integers >= 1")
        self._require("seed", self.seed >= 0, "at least 0")
        for name in ("learning_rate", "clip_norm"):
            self._require(name, getattr(self, name) > 0, "above 0")
        self._require("weight_decay", self.weight_decay >= 0, "at least 0")
        self._require("warmup", 0 <= self.warmup < 1, "in [0, 1)")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} {getattr(self, name)}: must be {expected}")

    @property
    def bucketing(self) -> dict[str, Any]:
        """The options of :func:`spp_jax.plan_buckets` for every plan of this run."""
        return {
            "max_buckets": self.buckets,
            "multiple": self.shape_multiple,
            "pixels_per_step": self.pixels_per_step,
            "batch_multiple": self.batch_multiple,
            "both_orientations": self.both_orientations,
        }

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "RunConfig":
        """From what :meth:`to_dict` gave, also by way of JSON.

        Raises:
            UsageError: a field is unknown or missing: the checkpoint is another version's.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != known:
            raise UsageError(
                "this configuration was written by another version of spp_jax: the fields "
                f"{sorted(set(fields) ^ known)} are in one of them only"
            )
        return cls(**{**fields, "levels": tuple(fields["levels"])})

    def differences(self, other: "RunConfig") -> list[str]:
        """The fields in which two configurations differ, as ``name: mine, not theirs``."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{name}: {json.dumps(mine[name])}, not {json.dumps(theirs[name])}"
            for name in mine
            if mine[name] != theirs[name]
        ]
