"""Interruption: a run that is told to stop saves first, on all of its hosts after the same step."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

import jax

from spp_jax.checkpoints import Checkpoints

__all__ = ["Interruption", "StoppedError"]

_log = logging.getLogger(__name__)


class StoppedError(Exception):
    """What was under way was broken off, as the run was told to stop; its state is as it was before."""


class Interruption:
    """Whether SIGTERM or Ctrl-C has come; a second one stops at once, saving nothing. Use as a context.

    On several hosts these agree on a step to stop after, by Orbax: one that saved alone would wait for ever.
    """

    def __init__(self, checkpoints: Checkpoints):
        """Watch nothing yet; the hosts agree by way of ``checkpoints``."""
        self._checkpoints, self._came, self._at_once = checkpoints, False, False

    def came(self) -> bool:
        """Whether it has, on this host; on several, whether they have agreed to stop."""
        return self._came

    def stops_after(self, step: int) -> bool:
        """Whether to stop, asked after each step; on every host the same."""
        if jax.process_count() > 1 and not self._came:
            self._came = self._checkpoints.reached_preemption(step)
        return self._came

    def check(self, *_) -> None:
        """Break off what is under way where one is told to stop; on several hosts it is finished first.

        Raises:
            StoppedError: it is to stop.
        """
        if self._came:
            raise StoppedError

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it nothing is under way that must be finished: it is left as soon as the signal comes."""
        self._at_once = True
        try:
            yield
        except StoppedError:
            pass
        finally:
            self._at_once = False

    def __enter__(self) -> "Interruption":
        # JAX's own watch over SIGTERM tells the other hosts: it keeps its handler. A thread has none.
        watches = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        signals = (signal.SIGTERM, signal.SIGINT) if watches else ()
        self._before = {s: signal.signal(s, self._handle) for s in signals}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame) -> None:
        if self._came:
            raise KeyboardInterrupt
        self._came = True
        _log.warning("stopping, and saving first; a second signal stops at once and saves nothing")
        if self._at_once:
            raise StoppedError
