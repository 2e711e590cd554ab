"""How options are read: by tyro, with help that flows, and types that it does not know by itself."""

import ast
import dataclasses
import functools
import inspect
import itertools
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from spp_jax.addresses import path_at

__all__ = ["AnyPath", "parsed"]

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


def parsed(options: type, prog: str, arguments: Sequence[str] | None, **defaults: Any) -> Any:
    """The options of a command line.

    Args:
        options: a dataclass, whose fields are flags and whose fields' docstrings are their help.
        prog: name of the command.
        arguments: of the command line; None: those of the process.
        **defaults: ``default``, an instance, as :func:`tyro.cli` takes it.
    """
    _explain_fields(options)
    return tyro.cli(options, prog=prog, args=arguments, **defaults)


@functools.cache
def _explain_fields(options: type) -> None:
    """Give tyro the docstrings of fields as flowing text; it takes each line of the source for a paragraph.

    Where a text says what the default is, tyro does not add the value that stands for it.
    """
    for base in filter(dataclasses.is_dataclass, options.__bases__):
        _explain_fields(base)
    try:
        (found,) = ast.parse(textwrap.dedent(inspect.getsource(options))).body
    except OSError:  # the source is not there, so there are no such docstrings
        return
    assert isinstance(found, ast.ClassDef)
    for field, text in itertools.pairwise(found.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as said)):
                flowing = " ".join(said.split())
                about = tyro.conf.arg(help=flowing, help_behavior_hint="" if "Default: " in flowing else None)
                options.__annotations__[name] = Annotated[options.__annotations__[name], about]
    for each in dataclasses.fields(options):
        if isinstance(each.default_factory, type) and dataclasses.is_dataclass(each.default_factory):
            _explain_fields(each.default_factory)
