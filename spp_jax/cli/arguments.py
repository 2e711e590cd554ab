"""Types of command-line options that tyro does not know by itself."""

import os
from pathlib import Path
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from spp_jax.addresses import path_at

__all__ = ["AnyPath"]

AnyPath = Annotated[
    Path,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda texts: path_at(texts[0]),
        is_instance=lambda value: isinstance(value, os.PathLike),
        str_from_instance=lambda path: [os.fspath(path)],
    ),
]
"""The type of a command-line option that may be an address."""
