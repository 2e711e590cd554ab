"""A checkpoint as files that JAX alone can run: one program a rung, for CPU, CUDA and TPU; and a manifest."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from spp_jax.padded import Padded
from spp_jax.scoring import exported
from spp_jax.scoring.ladder import Shape
from spp_jax.scoring.scorer import Scorer

__all__ = ["PLATFORMS", "export_scorer"]

PLATFORMS = ("cpu", "cuda", "tpu")


def export_scorer(
    scorer: Scorer, folder: Path, shapes: Iterable[Shape] = (), *, platforms: tuple[str, ...] = PLATFORMS
) -> dict[str, Any]:
    """Write an export into a new folder; it is there when it is whole.

    Each program takes batches of any number of rows: ``(leaves, values uint8 [rows, height, width, 3], sizes
    int32 [rows, 2], turned bool) -> scores float32 [rows]``; ``[rows, k]`` of a judge of k attributes.

    Args:
        scorer: of a checkpoint.
        folder: not there yet.
        shapes: (height, width) of the programs; none: those with which usual photographs are scored soonest.
        platforms: that the programs are for.

    Returns:
        The manifest.

    Raises:
        FileExistsError: the folder is there.
        ImportError: ``flatbuffers`` is not installed (the extra ``export``).
        ValueError: a shape is smaller than the model takes.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already")
    shapes = [*shapes] or scorer.usual_shapes()
    small = [s for s in shapes if s[0] < scorer.min_size[0] or s[1] < scorer.min_size[1]]
    if small:
        raise ValueError(f"{small[0]} is smaller than the model takes: {scorer.min_size}")
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    part.mkdir(parents=True)
    try:
        leaves = [np.asarray(leaf) for leaf in jax.device_get(scorer.leaves)]
        arrays: dict[str, Any] = {f"{i:04d}": leaf for i, leaf in enumerate(leaves)}
        np.savez(part / "variables.npz", **arrays)
        rungs = []
        for height, width in sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape)):
            path = part / f"{height}x{width}.jaxexport"
            path.write_bytes(_program(scorer, (height, width), leaves, platforms))
            rungs.append({"shape": [height, width], **_file(path)})
        manifest = _manifest(scorer, platforms) | {"variables": _file(part / "variables.npz"), "rungs": rungs}
        (part / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        shutil.copy(exported.__file__, part / "judge.py")
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return manifest


def _program(scorer: Scorer, shape: Shape, leaves: list[np.ndarray], platforms: tuple[str, ...]) -> bytes:
    def forward(leaves: list[jax.Array], values: jax.Array, sizes: jax.Array, turned: jax.Array) -> jax.Array:
        images = Padded(values, sizes, turned if scorer.both_orientations else None)
        return scorer.forward(leaves, images)

    (rows,) = jax.export.symbolic_shape("rows")
    arguments = (
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves],
        jax.ShapeDtypeStruct((rows, *shape, 3), np.uint8),
        jax.ShapeDtypeStruct((rows, 2), np.int32),
        jax.ShapeDtypeStruct((), np.bool),
    )
    return bytes(jax.export.export(jax.jit(forward), platforms=platforms)(*arguments).serialize())


def _manifest(scorer: Scorer, platforms: tuple[str, ...]) -> dict[str, Any]:
    return {
        "format": 1,
        "checkpoint": scorer.digest,
        "model": scorer.config.model,
        "policy": dataclasses.asdict(scorer.config.decoding),
        "attributes": list(scorer.attributes),
        "min_size": list(scorer.min_size),
        "both_orientations": scorer.both_orientations,
        "platforms": list(platforms),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
        "calling_convention": jax.export.maximum_supported_calling_convention_version,
    }


def _file(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
