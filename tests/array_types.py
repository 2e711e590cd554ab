"""The type checker of jaxtyping's import hook in these tests: beartype, of the arrays alone.

What else is annotated the functions check themselves, with errors of their own, which are tested.
"""

from beartype import beartype


def check(function):
    arrays = {
        name: annotation
        for name, annotation in getattr(function, "__annotations__", {}).items()
        if getattr(annotation, "__module__", "").startswith("jaxtyping")
    }
    function.__annotations__ = arrays
    return beartype(function)
