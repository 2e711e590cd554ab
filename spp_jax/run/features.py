"""What a probe is fitted on: features of every picture, worked out once and kept on the disk."""

import hashlib
import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spp_jax.buckets import BucketPlan
from spp_jax.compilation import BucketExecutables, abstract, replicated
from spp_jax.config import RunConfig
from spp_jax.data.loading import Batch, abstract_batch, load_batches, put
from spp_jax.data.records import Records
from spp_jax.data.schedule import in_order
from spp_jax.whole_files import written_whole

__all__ = ["Features", "features_key", "features_of", "features_program", "keep_features", "kept_features"]

_log = logging.getLogger(__name__)
_OF_HEAD = ("head=", "rank=")  # options that features do not depend on


class Features(NamedTuple):
    """Of the pictures of a collection.

    Attributes:
        values: float32 ``[n, features]``, in the order of the records; NaN where unreadable.
        failed: the reasons, by id.
    """

    values: np.ndarray
    failed: dict[str, str]


def features_program(
    graph: nnx.GraphDef, variables: nnx.State, mesh: Mesh, records: Records
) -> BucketExecutables:
    """What a network gives its head, ``(variables, batch) -> [batch, features]``, for any bucket.

    Args:
        graph: the network's static part; it is put into evaluation mode.
        variables: the others, or their shapes and dtypes.
        mesh: as :func:`spp_jax.compilation.data_mesh` makes it.
        records: whose labels the batches carry.
    """
    like = abstract(variables, jax.tree.map(lambda _: replicated(mesh), variables))

    def forward(variables: nnx.State, batch: Batch) -> jax.Array:
        model = nnx.merge(graph, variables, copy=True)
        model.eval()
        return model.features(batch.images)

    return BucketExecutables(
        forward,
        lambda bucket: (like, abstract_batch(bucket, mesh, records)),
        out_shardings=replicated(mesh),
    )


def features_of(
    program: BucketExecutables,
    variables: nnx.State,
    records: Records,
    plan: BucketPlan,
    mesh: Mesh,
    *,
    mirrored: bool = False,
    progress: Callable[[int], Any] = lambda count: None,
) -> Features:
    """The features of every record, or of its mirror image.

    Args:
        program: as :func:`features_program` makes it.
        variables: of the network.
        records: pictures.
        plan: buckets that hold them.
        mesh: of ``program``.
        mirrored: mirror each picture, left and right.
        progress: called with the number of pictures done since the last call.

    Raises:
        DoesNotFitError: a batch needs more memory than the device has.
    """
    n, values = len(records), None
    failed: dict[str, str] = {}
    specs = in_order(records.sizes, plan, mirrored=np.full(n, mirrored))
    for _ in program.compile_all(spec.bucket for spec in specs):  # several at a time
        pass
    for loaded in load_batches(records, specs, devices=mesh.size):
        call, weights = program[loaded.spec.bucket].call, loaded.batch.weights
        found = np.asarray(jax.device_get(call(variables, put(loaded.batch, mesh))))
        rows, members = loaded.read(weights)
        if values is None:
            values = np.full((n, found.shape[1]), np.nan, np.float32)
        values[members] = found[rows]
        failed |= {records.ids[index]: reason for index, reason in loaded.unread(weights).items()}
        progress(len(loaded.spec.rows))
    return Features(np.zeros((0, 0), np.float32) if values is None else values, failed)


def features_key(config: RunConfig, variables: nnx.State, records: Records, mirrored: bool) -> str:
    """A name for these very features: it differs when weights, policy, network, a picture's id or size do.

    The head's options and variables do not count: features are what it is given.
    """
    options = [option for option in config.model_options if not option.startswith(_OF_HEAD)]
    fields = [config.model, options, config.levels, config.dtype, str(config.decoding), mirrored]
    digest = hashlib.sha256(json.dumps([fields, records.ids]).encode())
    digest.update(np.asarray(records.sizes).astype("<i8").tobytes())
    pure = {name: value for name, value in nnx.to_pure_dict(variables).items() if name != "head"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(pure):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:20]


def kept_features(path: Path, ids: tuple[str, ...]) -> Features | None:
    """What was kept in a file; None where there is none, or it is damaged or of other pictures."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if tuple(file["ids"].tolist()) != ids or file["values"].shape[:1] != (len(ids),):
                return None
            failed = dict(zip(file["failed"].tolist(), file["reasons"].tolist(), strict=True))
            return Features(file["values"].astype(np.float32), failed)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning(f"{path} is damaged, and its features are worked out anew: {error}")
        return None


def keep_features(path: Path, ids: tuple[str, ...], features: Features) -> None:
    """Write a file that :func:`kept_features` reads; it appears under its name only when complete."""
    names, reasons = list(features.failed), list(features.failed.values())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part, part.open("wb") as file:
            np.savez(
                file,
                values=features.values,
                ids=np.array(ids, str),
                failed=np.array(names, str),
                reasons=np.array(reasons, str),
            )
    except OSError as error:  # the run goes on: they are only worked out anew next time
        _log.warning(f"features cannot be kept in {path}: {error}")
