"""The one error of photographs."""

__all__ = ["UnreadableError"]


class UnreadableError(Exception):
    """This photograph gives no pixels; the message says why in one line."""
