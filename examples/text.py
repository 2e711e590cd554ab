"""Not only pictures: sentences of any length, 1-D convolutions, a 1-D pyramid, buckets by length.

    python examples/text.py [--epochs N]

The corpus is real, and on your machine already: paragraphs of the documentation of scipy, scikit-image,
scikit-learn and matplotlib, 40 to 600 characters each, read from the installed sources, the libraries' names
struck out. The task: from which of the four is it? Test paragraphs are of files that training never saw.

The same network is trained three times: in six buckets by length; padded to the longest, with masks; and
padded to the longest, the padding taken for text. The first two are the same function of a sentence; what
differs is the time, and that batches of short sentences are larger: fewer steps. Needs spp_jax[demo].
"""

import ast
import dataclasses
import hashlib
import importlib.util
import re
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from spp_jax import BucketPlan, Padded, pad_batch, plan_buckets
from spp_jax.layers import Conv, SpatialPyramidPool

LIBRARIES = ("scipy", "skimage", "sklearn", "matplotlib")
NAMES = re.compile(
    r"scipy|skimage|scikit|sklearn|matplotlib|pyplot|numpy|\bplt\b|\bnp\b|\bsp\b", re.IGNORECASE
)
CHARACTERS = 96  # printable ASCII, with "?" for all others, and padding


@dataclasses.dataclass(frozen=True)
class Options:
    """Sentences of any length through a 1-D pyramid."""

    epochs: int = 8
    """Passes over the training part."""
    per_library: int = 2000
    """Paragraphs of each library, at most."""
    seed: int = 0
    """Of parameters and order."""


def paragraphs(library: str) -> Iterator[tuple[str, str]]:
    """(file below the library's folder, paragraph) of every docstring's prose."""
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        sys.exit(f"text.py: {library} is not installed: pip install 'spp_jax[demo]'")
    folder = Path(spec.origin).parent
    for file in sorted(folder.rglob("*.py")):
        if "tests" in file.parts:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their escapes
            tree = ast.parse(file.read_text(errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for text in (ast.get_docstring(node) or "").split("\n\n"):
                    text = NAMES.sub("", " ".join(text.split()))
                    if 40 <= len(text) <= 600 and ">>>" not in text and "---" not in text:
                        yield file.relative_to(folder.parent).as_posix(), text


def corpus(options: Options) -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
    """Characters int32 ``[length, 1]`` and labels of the training and the test part; split by file."""
    parts: dict[str, tuple[list[np.ndarray], list[int]]] = {"train": ([], []), "test": ([], [])}
    for label, library in enumerate(LIBRARIES):
        found = sorted({text: file for file, text in paragraphs(library)}.items())
        for i in np.random.default_rng(0).permutation(len(found))[: options.per_library]:
            text, file = found[i]
            held_out = hashlib.sha256(file.encode()).digest()[0] % 5 == 0
            texts, labels = parts["test" if held_out else "train"]
            codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32) - 31
            texts.append(np.clip(codes, 0, CHARACTERS - 1)[:, None])
            labels.append(label)
    return {name: (texts, np.array(labels)) for name, (texts, labels) in parts.items()}


class Reader(nnx.Module):
    """Two convolutions over characters, the pyramid, a linear layer."""

    def __init__(self, *, masked: bool = True, rngs: nnx.Rngs):
        self.masked = masked
        self.embed = nnx.Embed(CHARACTERS, 24, rngs=rngs)
        self.first = Conv(24, 64, (7,), strides=(2,), rngs=rngs)
        self.second = Conv(64, 96, (5,), strides=(2,), rngs=rngs)
        self.pool = SpatialPyramidPool((1, 2, 4), spatial_rank=1)
        self.logits = nnx.Linear(self.pool.num_bins * 96, len(LIBRARIES), rngs=rngs)

    def __call__(self, characters: Padded) -> jax.Array:
        """``[batch, length, 1]`` to ``[batch, 4]``."""
        x = characters if self.masked else Padded.whole(characters.values)
        x = x.map(lambda codes: self.embed(codes[..., 0]))
        x = self.second(self.first(x).map(nnx.relu)).map(nnx.relu)
        return self.logits(self.pool(x).reshape(len(characters.values), -1))


def batches(part: tuple, plan: BucketPlan, rng: np.random.Generator) -> Iterator:
    """(characters, labels, weights), shuffled; the last batch of a bucket has rows of weight 0."""
    texts, labels = part
    lengths = np.array([text.shape[:1] for text in texts])
    home, made = plan.assign(lengths), []
    for number, bucket in enumerate(plan.buckets):
        rows = rng.permutation(np.flatnonzero(home == number))
        made += [(bucket, rows[i : i + bucket.batch_size]) for i in range(0, len(rows), bucket.batch_size)]
    for i in rng.permutation(len(made)):
        bucket, rows = made[i]
        fill = bucket.batch_size - len(rows)
        padded = pad_batch([*(texts[r] for r in rows), *[np.zeros((0, 1), np.int32)] * fill], bucket.shape)
        yield padded, np.pad(labels[rows], (0, fill)), np.pad(np.ones(len(rows), np.float32), (0, fill))


def train(
    options: Options, parts: dict, plan: BucketPlan, *, masked: bool
) -> tuple[float, float, int, float]:
    """Test accuracy, seconds of an epoch without compilations, its steps, and the share of padding."""
    graph, params = nnx.split(Reader(masked=masked, rngs=nnx.Rngs(options.seed)))
    optimizer = optax.adam(1e-3)
    state = optimizer.init(params)

    lengths = np.array([text.shape[:1] for text in parts["train"][0]])
    in_bucket = np.bincount(plan.assign(lengths), minlength=len(plan.buckets)).tolist()
    steps = sum(-(-n // bucket.batch_size) for n, bucket in zip(in_bucket, plan.buckets, strict=True))
    mean_batch = len(lengths) / steps  # every sentence weighs the same, whatever its batch

    @jax.jit
    def step(params, state, batch):
        characters, labels, weights = batch

        def loss(params):
            logits = nnx.merge(graph, params)(characters)
            return weights @ optax.softmax_cross_entropy_with_integer_labels(logits, labels) / mean_batch

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def right(params, batch):
        characters, labels, weights = batch
        return weights @ (nnx.merge(graph, params)(characters).argmax(-1) == labels)

    rng, seconds = np.random.default_rng(options.seed), []
    for _ in range(options.epochs):
        start = time.perf_counter()
        for batch in batches(parts["train"], plan, rng):
            params, state = step(params, state, jax.tree.map(jnp.asarray, batch))
        jax.block_until_ready(params)
        seconds.append(time.perf_counter() - start)
    hits = sum(float(right(params, jax.tree.map(jnp.asarray, b))) for b in batches(parts["test"], plan, rng))
    return hits / len(parts["test"][1]), float(np.median(seconds[1:] or seconds)), steps, plan.waste(lengths)


def main() -> None:
    """Print the table."""
    options = tyro.cli(Options)
    parts = corpus(options)
    lengths = np.array([text.shape[:1] for texts, _ in parts.values() for text in texts])
    many = plan_buckets(lengths, 6, pixels_per_step=32 * 300)
    longest = plan_buckets(lengths, 1, pixels_per_step=32 * int(lengths.max() + 8))
    print(f"{len(parts['train'][1])} paragraphs to train on, {len(parts['test'][1])} to test on")
    print(f"{'':34s}{'accuracy':>10s}{'s an epoch':>12s}{'steps':>7s}{'padding':>9s}")
    for name, plan, masked in (
        ("six buckets by length", many, True),
        ("padded to the longest", longest, True),
        ("padded to the longest, no masks", longest, False),
    ):
        accuracy, seconds, steps, waste = train(options, parts, plan, masked=masked)
        print(f"{name:34s}{accuracy:10.1%}{seconds:12.2f}{steps:7d}{waste:9.1%}", flush=True)


if __name__ == "__main__":
    main()
