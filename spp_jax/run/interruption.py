"""Interruption: a run that is told to stop saves first, on all of its hosts after the same step."""

import logging
import signal

import jax

from spp_jax.checkpoints import Checkpoints

__all__ = ["Interruption"]

_log = logging.getLogger(__name__)


class Interruption:
    """Whether SIGTERM or Ctrl-C has come; a second one stops at once, saving nothing. Use as a context.

    On several hosts these agree on a step to stop after, by Orbax: one that saved alone would wait for ever.
    """

    def __init__(self, checkpoints: Checkpoints):
        """Watch nothing yet; the hosts agree by way of ``checkpoints``."""
        self._checkpoints, self._came = checkpoints, False

    def came(self) -> bool:
        """Whether it has, on this host; on several, whether they have agreed to stop."""
        return self._came

    def stops_after(self, step: int) -> bool:
        """Whether to stop, asked after each step; on every host the same."""
        if jax.process_count() > 1:
            self._came = self._checkpoints.reached_preemption(step)
        return self._came

    def __enter__(self) -> "Interruption":
        # JAX's own watch over SIGTERM tells the other hosts: it keeps its handler.
        signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._before = {s: signal.signal(s, self._handle) for s in signals}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame) -> None:
        if self._came:
            raise KeyboardInterrupt
        self._came = True
        _log.warning("stopping after this step; once more stops at once")
