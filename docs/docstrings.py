"""For mkdocstrings: docstrings as its parser of Google's style reads them.

``Example:`` becomes ``Examples:``, the section whose prompts are shown as code. What is returned gets an
empty type before its description, so that the annotation is the type, and not the words up to a colon.
"""

import re
from typing import Any

import griffe

__all__ = ["Readable", "readable"]


class Readable(griffe.Extension):
    """Changes the docstrings of whatever is loaded."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)


def readable(docstring: str) -> str:
    """A docstring, clean of its indentation, with the sections that the parser knows."""
    docstring = re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE)
    return re.sub(r"^(Returns|Yields):\n( +)", r"\1:\n\2: ", docstring, flags=re.MULTILINE)
