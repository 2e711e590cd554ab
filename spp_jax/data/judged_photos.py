"""`judged_photos`: four sets of photographs that people judged, as one: what the judges that ship learned.

The folder has one for each, as `--data folder` reads it: `live_wild` and `biq2021` (quality), `oasis` and
`vessel` (beauty). A picture has a score of the one or of the other.
"""

import dataclasses
from pathlib import Path

import numpy as np

from spp_jax.config import Decoding
from spp_jax.data.folder import load_folder
from spp_jax.data.records import Records, join_records

__all__ = ["SETS", "load_judged", "on_scale_of"]

SETS = {"live_wild": "quality", "biq2021": "quality", "oasis": "beauty", "vessel": "beauty"}


def load_judged(data_dir: Path, decoding: Decoding) -> tuple[Records, dict[str, str]]:
    """All records, and by id the reason for each picture that cannot be read."""
    parts, unread = {}, {}
    for name, attribute in SETS.items():
        records, reasons = load_folder(Path(data_dir) / name, decoding)
        kinds = records.categories or ("",) * len(records)
        parts[name] = dataclasses.replace(
            records,
            attributes=(attribute,),
            labels={},
            splits=(),
            categories=tuple(kind or "all" for kind in kinds),
        )
        unread |= {f"{name}/{file}": reason for file, reason in reasons.items()}
    scores = on_scale_of(parts["biq2021"].scores, parts["live_wild"].scores)
    parts["biq2021"] = dataclasses.replace(parts["biq2021"], scores=scores, good=scores >= 0.5)
    return join_records(parts), unread


def on_scale_of(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Scores whose logits have the mean and the deviation of others', in the same order: float32.

    Two laboratories do not use a scale alike: BIQ2021's observers gave .72 to the picture in the
    middle, and LIVE In the Wild's mean is .55. A score of .5 then means what it does there.
    """
    mine, theirs = (np.log(s / (1 - s)) for s in (np.clip(a, 0.02, 0.98) for a in (scores, others)))
    logits = (mine - np.nanmean(mine)) / np.nanstd(mine) * np.nanstd(theirs) + np.nanmean(theirs)
    return (1 / (1 + np.exp(-logits))).astype(np.float32)
