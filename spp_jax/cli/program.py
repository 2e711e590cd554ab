"""What every command shares: exit statuses, how errors and progress reach a person, and signals."""

import atexit
import contextlib
import dataclasses
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import jax
from tqdm import tqdm

from spp_jax.compilation import DoesNotFitError, compiles_still
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
    before_streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _streams()
    flags = flags_of(options)
    before, shown = _interrupted_by_sigterm(), _Shown(flags)
    log = logging.getLogger("spp_jax")
    level, propagates = log.level, log.propagate
    log.addHandler(shown)
    log.setLevel(logging.INFO)
    log.propagate = False  # a library that shows the root's log, as TFDS does, would show each line again
    try:
        status = work()
        sys.stdout.flush()
        return _left(status)
    except UsageError as error:
        return _said(name, in_flags(str(error), flags, error.arguments), WRONG_USE)
    except BrokenPipeError:  # nobody reads what is printed
        with contextlib.suppress(OSError, ValueError):  # else Python's end would say it again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _said(name, "what is printed is not read any more", FAILED)
    except (OSError, FloatingPointError, SppJaxError, DoesNotFitError) as error:
        return _said(name, in_flags(str(error), flags), FAILED)
    except KeyboardInterrupt:
        again = "if anything was saved, run it again with --resume"
        if "resume" not in flags:
            again = "run it again; what --out holds is not lost"
        _said(name, f"interrupted; {again}" if "out" in flags else "interrupted", INTERRUPTED)
        return _left(INTERRUPTED)
    except (RuntimeError, AssertionError):  # by JAX, the latter where not even a plugin is there
        if _has_device():
            raise
        asked = os.environ.get("JAX_PLATFORMS", "")
        return _said(name, f"JAX finds no device: JAX_PLATFORMS is {asked!r}, and there is none", WRONG_USE)
    finally:
        log.removeHandler(shown)
        log.setLevel(level)
        log.propagate = propagates
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        sys.stdout, sys.stderr = before_streams


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


class _Unbroken:
    """A stream to which only what tells is written: where it cannot be, the work goes on all the same."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def _streams() -> tuple[Any, Any]:
    """Standard output and error; in place of one that was closed before the start, none that says so."""
    given: list[Any] = [open(os.devnull, "w") if s is None else s for s in (sys.stdout, sys.stderr)]  # noqa: SIM115
    for stream in given:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names need not be text
    return given[0], given[1] if isinstance(given[1], _Unbroken) else _Unbroken(given[1])


def _left(status: int) -> int:
    """The status; where compilations are under way that nobody waits for, Python's end will not meet them."""
    if compiles_still():
        atexit.register(_leave, status)
    return status


def _leave(status: int) -> None:
    if compiles_still():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        jax.distributed.shutdown()  # of several hosts: else the others take this one for lost
        os._exit(status)


def _has_device() -> bool:
    try:
        return bool(jax.devices())
    except (RuntimeError, AssertionError):
        return False


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
            said = in_flags(record.getMessage(), self._flags)
            tqdm.write("\n".join(map(printable, said.split("\n"))), file=sys.stderr)


def _interrupted_by_sigterm() -> Any:
    """Have SIGTERM do what Ctrl-C does; returns what it did before, None in a thread, which cannot."""

    def interrupt(number, frame) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, interrupt)
