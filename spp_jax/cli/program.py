"""What every command shares: exit statuses, how errors and progress reach a person, and signals."""

import dataclasses
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import jax
from tqdm import tqdm

from spp_jax.compilation import DoesNotFitError
from spp_jax.errors import SppJaxError, UsageError
from spp_jax.names import printable

__all__ = ["DONE", "FAILED", "INTERRUPTED", "SKIPPED", "WRONG_USE", "flags_of", "in_flags", "run_program"]

DONE, FAILED, WRONG_USE, SKIPPED, INTERRUPTED = 0, 1, 2, 3, 75
"""Exit statuses: all done; failed; wrong use; done, with photographs skipped; interrupted, state saved."""


def run_program(name: str, options: type, work: Callable[[], int]) -> int:
    """Run a command: show what the package logs, and say errors in one line.

    Args:
        name: of the command, before each error.
        options: the dataclass of its options, whose fields are flags.
        work: parses and does it; returns the exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore  # names need not be text
    flags = flags_of(options)
    before, shown = _interrupted_by_sigterm(), _Shown(flags)
    log = logging.getLogger("spp_jax")
    level = log.level
    log.addHandler(shown)
    log.setLevel(logging.INFO)
    try:
        return work()
    except UsageError as error:
        return _said(name, in_flags(str(error), flags, error.arguments), WRONG_USE)
    except (OSError, FloatingPointError, SppJaxError, DoesNotFitError) as error:
        return _said(name, in_flags(str(error), flags), FAILED)
    except KeyboardInterrupt:
        return _said(name, "interrupted; if anything was saved, run it again with --resume", INTERRUPTED)
    finally:
        log.removeHandler(shown)
        log.setLevel(level)
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def flags_of(options: type) -> dict[str, str]:
    """From each field of a dataclass, and of the dataclasses that stand in it, to its flag."""
    found = {}
    for field in dataclasses.fields(options):
        inner = field.default_factory if field.default_factory is not dataclasses.MISSING else None
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            found |= flags_of(inner)
        else:
            found[field.name] = f"--{field.name.replace('_', '-')}"
    return found


def in_flags(message: str, flags: dict[str, str], arguments: Iterable[str] = ()) -> str:
    """The message with flags in place of arguments.

    Args:
        message: of the library.
        flags: by argument.
        arguments: names in the message that could be ordinary words; those with an underscore never are.

    Example:
        >>> in_flags("ema is 3: lower clip_norm", {"ema": "--ema", "clip_norm": "--clip-norm"}, ["ema"])
        '--ema is 3: lower --clip-norm'
    """
    for argument, flag in flags.items():
        if argument in arguments or "_" in argument:
            times = 0 if "_" in argument else 1  # an ordinary word is the argument where it comes first
            message = re.sub(rf"(?<![\w/.-]){argument}(?![\w/.-]*[\w/])", flag, message, count=times)
    return message


def _said(name: str, message: str, status: int) -> int:
    print(f"{name}: {printable(message)}", file=sys.stderr)
    return status


class _Shown(logging.Handler):
    """Writes what the package logs to standard error, above any progress bar, by one process of a run."""

    def __init__(self, flags: dict[str, str]):
        super().__init__()
        self._flags = flags

    def emit(self, record: logging.LogRecord) -> None:
        if jax.process_index() == 0:
            tqdm.write(in_flags(record.getMessage(), self._flags), file=sys.stderr)


def _interrupted_by_sigterm() -> Any:
    """Have SIGTERM do what Ctrl-C does; returns what it did before, None in a thread, which cannot."""

    def interrupt(number, frame) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, interrupt)
