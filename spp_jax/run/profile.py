"""A trace of some steps, for TensorBoard's profiler."""

from pathlib import Path

import jax

__all__ = ["Profile"]

_AFTER = 10  # the first steps are not like the others


class Profile:
    """Traces so many steps, once the first ten of this start are done. Use as a context."""

    def __init__(self, folder: Path, steps: int, start: int):
        """Trace into ``folder / "profile"``; ``steps`` 0: nothing; ``start``: steps that are done."""
        self._folder = folder / "profile"
        self._first, self._last = start + _AFTER, start + _AFTER + steps
        self._runs = False

    def __enter__(self) -> "Profile":
        return self

    def after(self, done: int) -> None:
        """To be called after each step, with the number of those done."""
        if done == self._first < self._last:
            jax.profiler.start_trace(str(self._folder))
            self._runs = True
        elif done == self._last and self._runs:
            self.__exit__()

    def __exit__(self, *exception) -> None:
        if self._runs:
            jax.profiler.stop_trace()
            self._runs = False
