"""Interruption: a run that is told to stop saves first, on all of its hosts after the same step."""

import logging
import signal
import threading

import jax
from jax.experimental import multihost_utils

from spp_jax.run.hosts import Meeting

__all__ = ["Interruption", "StoppedError"]

_log = logging.getLogger(__name__)


class StoppedError(Exception):
    """What was under way was broken off, as the run was told to stop; its state is as it was before."""


class Interruption:
    """Whether SIGTERM or Ctrl-C has come; a second one stops at once, saving nothing. Use as a context.

    On several hosts these agree on a moment to stop at: one that saved alone would wait for ever. A moment is
    what all of them come to in the same order: the end of a step, or of a batch that is judged. Before the
    first, while each compiles by itself, all leave that at once.
    """

    def __init__(self):
        """Watch nothing yet."""
        self._came, self._moments = False, 0

    def came(self) -> bool:
        """Whether it has, on this host; on several, whether they have agreed to stop."""
        return self._came

    def stops_here(self) -> bool:
        """Whether to stop, asked at each moment; on every host the same."""
        if jax.process_count() > 1 and not self._came:
            self._moments += (
                1  # and not the step: they agree on the one after the latest that any has come to
            )
            self._came = multihost_utils.reached_preemption_sync_point(self._moments)
        return self._came

    def check(self, *_) -> None:
        """Break off what is under way where one is told to stop; asked at each moment.

        Raises:
            StoppedError: it is to stop; on every host the same.
        """
        if self.stops_here():
            raise StoppedError

    def check_apart(self) -> None:
        """As :meth:`check`, again and again before the first moment, while hosts work by themselves.

        Raises:
            StoppedError: it is to stop; on every host, if at different times, before it left :meth:`meet`.
        """
        self._came = self._came or (self._meeting is not None and self._meeting.called_off())
        if self._came:
            raise StoppedError

    def meet(self) -> None:
        """Wait for the other hosts to have come so far.

        Raises:
            StoppedError: one of them was told to stop before all had.
        """
        self._came = self._came or (self._meeting is not None and not self._meeting.come())
        if self._came:
            raise StoppedError

    def __enter__(self) -> "Interruption":
        # JAX's own watch over SIGTERM tells the other hosts: it keeps its handler. A thread has none.
        several = jax.process_count() > 1
        self._meeting = Meeting() if several else None
        watches = not several and threading.current_thread() is threading.main_thread()
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
