"""Files as a table names them, found as they are called on the disk, where that is unambiguous."""

import os
import unicodedata
from pathlib import Path

__all__ = ["NamesOnDisk"]


class NamesOnDisk:
    """Looks names up below a folder, on a disk; each folder in it is listed once."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._listed: dict[str, tuple[set[str], dict[str, list[str]]]] = {}

    def find(self, name: str) -> str | None:
        """The name of a file as it is on the disk, relative to the folder; None where there is none.

        Tried in this order: the name itself; without blanks around it; with slashes for backslashes; and of
        each of these in the other Unicode form or in other case, where just one file is called so.
        """
        stripped = name.strip()
        for candidate in dict.fromkeys(
            (name, stripped, name.replace("\\", "/"), stripped.replace("\\", "/"))
        ):
            try:
                if candidate and os.path.lexists(self._folder / candidate):
                    return candidate
            except ValueError:  # a name that no file can have
                return None
            if (found := self._alike(candidate)) is not None:
                return found
        return None

    def _alike(self, name: str) -> str | None:
        place = ""
        for part in name.split("/"):
            if part in ("", ".", ".."):
                return None
            names, alike = self._list(place)
            if part not in names:
                others = alike.get(_plain(part), [])
                if len(others) != 1:
                    return None
                (part,) = others
            place = f"{place}/{part}" if place else part
        return place

    def _list(self, place: str) -> tuple[set[str], dict[str, list[str]]]:
        if place not in self._listed:
            try:
                names = set(os.listdir(self._folder / place))
            except OSError:  # no folder, or not to be read
                names = set()
            alike: dict[str, list[str]] = {}
            for name in sorted(names):
                alike.setdefault(_plain(name), []).append(name)
            self._listed[place] = names, alike
        return self._listed[place]

    def leaves(self, name: str) -> bool:
        """Whether the name, or a link that it goes by, leads out of the folder."""
        inside = os.path.realpath(self._folder)
        try:
            return os.path.commonpath([inside, os.path.realpath(self._folder / name)]) != inside
        except ValueError:  # a name that no file can have
            return False


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
