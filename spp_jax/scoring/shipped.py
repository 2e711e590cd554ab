"""The judges that ship: beside the package in a checkout, inside it once it is installed."""

from pathlib import Path

from spp_jax.errors import UsageError

__all__ = ["list_shipped", "shipped"]

_PLACES = (Path(__file__).parents[1] / "judges", Path(__file__).parents[2] / "checkpoints")


def list_shipped() -> list[str]:
    """The names that :func:`shipped` takes."""
    found = [path.parent.name for place in _PLACES for path in place.glob("*/README.md")]
    return sorted(set(found))


def shipped(name: str) -> Path:
    """The folder of a judge that ships.

    Raises:
        UsageError: there is none of this name; lists those that there are.

    Example:
        >>> shipped("compact").name
        'compact'
    """
    for place in _PLACES:
        if (place / name / "README.md").is_file():
            return place / name
    known = ", ".join(list_shipped()) or "none: this installation is incomplete"
    raise UsageError(f"judge {name!r} does not ship; those that do: {known}", "judge")
