"""What it is worth that equal blocks of a network are traced once: seconds of making its training step.

    python benchmarks/tracing.py [--models NAME ...] [--out FILE]

Seconds of processor time to trace, to lower and to compile the step of one bucket, with `Stages.traced_once`
as the network has it and without. Each has a process of its own, since what was traced for one helps the
other. Nothing is kept on the disk.

Prints a table; saves JSON.
"""

import dataclasses
import functools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import optax
import tyro
from flax import nnx

from spp_jax import Bucket, create_model
from spp_jax.compilation import compiler_options, data_mesh
from spp_jax.data.loading import abstract_batch
from spp_jax.training import create_training, train_step

ROWS = ("every block", "equal blocks once")


@dataclasses.dataclass(frozen=True)
class Options:
    """What it is worth that equal blocks of a network are traced once."""

    models: tuple[str, ...] = ("resnet18", "resnet50")
    """Networks whose body is made of `Stages`."""
    bucket: tuple[int, int, int] = (4, 256, 256)
    """Pictures of a step, their height and width."""
    row: Literal["every block", "equal blocks once"] | None = None
    """Measure this row of the first network, and print JSON."""
    out: Path | None = None
    """File for the figures, as JSON."""


def seconds(name: str, once: bool, options: Options) -> dict[str, float]:
    """Of tracing, lowering and compiling."""
    model: Any = create_model(name, rngs=nnx.Rngs(0))
    model.body.traced_once = once
    recipe, state = create_training(model, "huber", optax.adamw(1e-3), total_updates=10, mean_batch=4)
    rows, *shape = options.bucket
    batch = abstract_batch(Bucket(tuple(shape), rows), data_mesh())
    found, began = {}, time.process_time()
    traced = jax.jit(functools.partial(train_step, recipe)).trace(state, batch)
    found["trace"], began = time.process_time() - began, time.process_time()
    lowered = traced.lower()
    found["lower"], began = time.process_time() - began, time.process_time()
    lowered.compile(compiler_options=compiler_options(jax.default_backend()))
    found["compile"] = time.process_time() - began
    return found


def main() -> None:
    options = tyro.cli(Options)
    jax.config.update("jax_enable_compilation_cache", False)
    if options.row:
        seconds("compact", False, options)  # what every process traces first
        print(json.dumps(seconds(options.models[0], options.row == ROWS[1], options)))
        return
    print(f"jax {jax.__version__}, processor seconds\n| | trace | lower | compile |\n|---|---|---|---|")
    figures: dict[str, Any] = {}
    for name in options.models:
        for row in ROWS:
            command = [sys.executable, __file__, "--models", name, "--row", row]
            command += ["--bucket", *map(str, options.bucket)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            row = f"{name}, {row}"
            figures[row] = json.loads(said.splitlines()[-1])
            print(f"| {row} | " + " | ".join(f"{s:.1f}" for s in figures[row].values()) + " |", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"jax": jax.__version__, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
