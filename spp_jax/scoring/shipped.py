"""The judges that ship: beside the package in a checkout, inside it once it is installed."""

from pathlib import Path
from typing import NamedTuple

from spp_jax.errors import UsageError

__all__ = ["DEFAULT", "JUDGES", "Judge", "list_shipped", "shipped"]

_PLACES = (Path(__file__).parents[1] / "judges", Path(__file__).parents[2] / "checkpoints")
DEFAULT = "quality"
"""The judge where none is named."""


class Judge(NamedTuple):
    """One that ships.

    Attributes:
        folder: of its checkpoint.
        attributes: which of that one's it judges; empty: its only one.
    """

    folder: str
    attributes: tuple[str, ...] = ()


JUDGES = {
    "quality": Judge("judges", ("quality",)),
    "beauty": Judge("judges", ("beauty",)),
    "all": Judge("judges", ("quality", "beauty")),
    "compact": Judge("compact"),
}
"""By name. Quality and beauty are two outputs of one network: both cost one pass."""


def list_shipped() -> list[str]:
    """The names of judges that are here."""
    return [name for name, judge in JUDGES.items() if _place(judge) is not None]


def shipped(name: str) -> Path:
    """The folder of a judge's checkpoint; :meth:`~spp_jax.Scorer.from_pretrained` loads it.

    Raises:
        UsageError: there is none of this name; lists those that there are.

    Example:
        >>> shipped("compact").name
        'compact'
    """
    place = _place(JUDGES[name]) if name in JUDGES else None
    if place is None:
        known = ", ".join(list_shipped()) or "none: this installation is incomplete"
        raise UsageError(f"judge {name!r} does not ship; those that do: {known}", "judge")
    return place


def _place(judge: Judge) -> Path | None:
    found = [place / judge.folder for place in _PLACES if (place / judge.folder / "README.md").is_file()]
    return found[0] if found else None
