"""What a caller may have to catch: one base, which is a `ValueError` too, and the user's own mistakes."""

__all__ = ["SppJaxError", "UsageError"]


class SppJaxError(ValueError):
    """Of all errors that this package raises on purpose.

    Its message is one line; it says what was wrong, where, and what to do.

    Example:
        >>> issubclass(UsageError, SppJaxError) and issubclass(SppJaxError, ValueError)
        True
    """


class UsageError(SppJaxError):
    """What was asked for cannot be.

    The message speaks of arguments, by their names in Python; the command line says flags in their place.

    Attributes:
        arguments: those that the message names.

    Example:
        >>> str(UsageError("ema must be between 0 and 1, not 3", "ema"))
        'ema must be between 0 and 1, not 3'
    """

    def __init__(self, message: str, *arguments: str):
        super().__init__(message)
        self.arguments = arguments
