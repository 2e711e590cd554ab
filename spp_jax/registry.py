"""From a name to an object: one of ours, or anybody's by ``module:attribute``.

There are four registries: of models, losses, data sets and reductions. Each takes the names in its table, and
``package.module:thing`` or ``path/to/file.py:thing`` for what is in a file of the user's: it is then
as good as ours, without a line of ours being changed.
"""

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from spp_jax.errors import UsageError

__all__ = ["Registry", "absolute", "fingerprint", "is_foreign"]

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A table of parts of one kind.

    Example:
        >>> shapes = Registry("shape", {"path": "pathlib:Path"}, argument="shape")
        >>> shapes["path"].__name__, shapes["collections:OrderedDict"].__name__, list(shapes)
        ('Path', 'OrderedDict', ['path'])
    """

    def __init__(self, kind: str, entries: Mapping[str, T | str], *, argument: str):
        """Make the table.

        Args:
            kind: of its parts, in the singular, for messages.
            entries: each part, or ``module:attribute`` for one that is imported when it is asked for.
            argument: the option that names one of them, for messages.
        """
        self._kind, self._argument = kind, argument
        self._entries: dict[str, T | str] = dict(entries)

    def __getitem__(self, name: str) -> T:
        """The part of this name, or at this ``module:attribute``.

        Raises:
            UsageError: there is none; lists the names in the table.
        """
        entry: Any = self._entries.get(name, name if is_foreign(name) else None)
        if entry is None:
            raise UsageError(
                f"{self._argument} {name!r} is unknown; known are {', '.join(self)}, and "
                f"module:attribute or file.py:attribute for a {self._kind} of your own",
                self._argument,
            )
        if not isinstance(entry, str):
            return entry
        try:
            return _attribute(entry)
        except UsageError as error:
            raise UsageError(f"{self._argument} {error}", self._argument) from error.__cause__

    def __iter__(self) -> Iterator[str]:
        """The names in the table, sorted."""
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        """How many names are in the table."""
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        """Whether the name is in the table."""
        return name in self._entries

    def add(self, name: str, part: T) -> None:
        """Give a part of one's own a name, for this process.

        Raises:
            UsageError: the name is taken, or reads as ``module:attribute``.
        """
        if name in self._entries or is_foreign(name):
            raise UsageError(f"{self._argument} {name!r} is taken or no name: choose another", self._argument)
        self._entries[name] = part


def is_foreign(name: str) -> bool:
    """Whether the name is ``module:attribute`` or ``file.py:attribute``."""
    module, colon, attribute = name.rpartition(":")
    return bool(module and colon and attribute.replace(".", "_").isidentifier()) and "://" not in name


def absolute(name: str) -> str:
    """The name; where it is of a file, with the file's whole path, so that it holds in any folder.

    Example:
        >>> absolute("compact"), absolute("math:sqrt")
        ('compact', 'math:sqrt')
    """
    module, _, attribute = name.rpartition(":")
    if not is_foreign(name) or not module.endswith(".py"):
        return name
    return f"{Path(module).expanduser().absolute()}:{attribute}"


def fingerprint(name: str) -> str | None:
    """A digest of the source file that a foreign name points into; None for a name that is not foreign."""
    if not is_foreign(name):
        return None
    module = _module(name.rpartition(":")[0])
    path = getattr(module, "__file__", None)
    if path is None:  # compiled into the interpreter
        return ""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _attribute(name: str) -> Any:
    where, _, attribute = name.rpartition(":")
    module = _module(where)
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        public = sorted(key for key in vars(module) if not key.startswith("_"))
        raise UsageError(f"{name}: {where} has no {attribute}; it has {', '.join(public)}") from None


def _module(where: str) -> ModuleType:
    """A module by name, or the one that a file is; a file is run once a process."""
    before = list(sys.path)
    try:
        if where.endswith(".py"):
            path = Path(where).expanduser().absolute()
            if not path.is_file():
                raise UsageError(f"{where}: there is no such file; put it back, or name where it is now")
            sys.path.insert(0, str(path.parent))  # what it imports from beside it, as when it is run
            return _of_file(path)
        sys.path.append(os.getcwd())
        return importlib.import_module(where)
    except UsageError:
        raise
    except ModuleNotFoundError as error:
        raise UsageError(f"{where}: there is no module {error.name}") from error
    except Exception as error:  # the user's code may raise anything while it is imported
        said = " ".join(str(error).split())[:200]
        raise UsageError(f"{where} cannot be imported: {type(error).__name__}: {said}") from error
    finally:
        sys.path[:] = before


def _of_file(path: Path) -> ModuleType:
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look for themselves there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
