"""Names of files as they may be shown: a name can hold anything, and nothing in it may forge what we say."""

import unicodedata
from collections.abc import Iterable, Mapping

__all__ = ["cell", "guarded", "printable", "some"]

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (also of direction), surrogates, ends of lines
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def printable(text: object) -> str:
    r"""The text in one line, what a terminal would obey or hide escaped, as in ``\x1b`` or ``\u202e``."""
    return "".join(_escaped(c) if unicodedata.category(c) in _HIDDEN else c for c in str(text))


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def cell(text: object) -> str:
    """The text as a cell of a CSV file, printable, and such that no spreadsheet takes it for a formula."""
    shown = str(text)
    return f"'{printable(shown)}" if shown.startswith(_FORMULAS) else printable(shown)


def guarded(name: object) -> str:
    """The name as a cell of a CSV file: itself, but such that no spreadsheet takes it for a formula.

    Other names have other cells, but for what is no text in a name, which is escaped.
    """
    shown = str(name).encode("utf-8", "backslashreplace").decode()
    return f"'{shown}" if shown.lstrip("'").startswith(_FORMULAS) else shown


def some(reasons: Mapping[str, str] | Iterable[tuple[str, str]], most: int = 3) -> str:
    """The first of these names with their reasons, in a line; how many more there are."""
    pairs = list(reasons.items() if isinstance(reasons, Mapping) else reasons)
    shown = [f"{printable(name)}: {printable(reason)}" for name, reason in pairs[:most]]
    return "; ".join(shown) + (f"; and {len(pairs) - most} more" if len(pairs) > most else "")
