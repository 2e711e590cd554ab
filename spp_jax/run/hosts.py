"""What the hosts of a run tell one another outside of programs, by the store of JAX's own service."""

import itertools
import time
from typing import Any

import jax
from jax._src import distributed  # the service has no public name

__all__ = ["Meeting"]

_NOTICE = "RECEIVED_PREEMPTION_NOTICE"
"""Under this JAX's watch over SIGTERM tells all hosts that one of them was told to stop."""
_SECONDS = 0.1  # between two looks
_numbers = itertools.count()


class Meeting:
    """A place that hosts come to at different times: all go on from there, or none does.

    None does where one was told to stop before the last had come; they know it at once, wherever they are.
    Which of the two was first, the store decides: it takes one of them and refuses the other.
    """

    def __init__(self):
        """On every host in the same order."""
        self._client: Any = distributed.global_state.client
        self._name = f"spp_jax/meeting-{next(_numbers)}"

    def called_off(self) -> bool:
        """Whether none goes on from here."""
        if self._read(f"{self._name}/outcome") is None and self._read(_NOTICE) is not None:
            self._decide(b"stop")
        return self._read(f"{self._name}/outcome") == b"stop"

    def come(self) -> bool:
        """Wait for the others; whether all go on."""
        self._client.key_value_set_bytes(f"{self._name}/here/{jax.process_index()}", b"here")
        while not self.called_off():
            if self._read(f"{self._name}/outcome") == b"go":
                return True
            if len(self._client.key_value_dir_get_bytes(f"{self._name}/here")) == jax.process_count():
                self._decide(b"go")
                continue
            time.sleep(_SECONDS)
        return False

    def _decide(self, outcome: bytes) -> None:
        try:
            self._client.key_value_set_bytes(f"{self._name}/outcome", outcome)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise

    def _read(self, key: str) -> bytes | None:
        try:
            return self._client.key_value_try_get_bytes(key)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
            return None
