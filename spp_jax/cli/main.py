"""`spp-jax`: one program, a command a file of this folder."""

import importlib
import importlib.metadata
import sys

__all__ = ["main"]

_COMMANDS = {
    "score": "score photographs, or folders of them",
    "explain": "draw why a photograph has its score",
    "crop": "write the part of a photograph that is judged best",
    "train": "train a network on a data set",
    "export": "write a judge as programs that JAX and NumPy alone can run",
    "app": "serve a page that judges the photograph dropped into it",
    "evaluate": "test a judge on a split of a data set, or score photographs",
}


def main(arguments: list[str] | None = None) -> int:
    """Run ``spp-jax COMMAND ...``; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    name, rest = given[0] if given else "", given[1:]
    if name in ("-V", "--version"):
        print(f"spp-jax {importlib.metadata.version('spp_jax')}")
        return 0
    if name not in _COMMANDS:
        wrong = name not in ("", "-h", "--help")
        print(_usage(name if wrong else None), file=sys.stderr if wrong else sys.stdout)
        return 2 if wrong or not name else 0
    return importlib.import_module(f"spp_jax.cli.{name}").main(rest)


def _usage(unknown: str | None) -> str:
    width = max(map(len, _COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {meaning}" for name, meaning in _COMMANDS.items())
    said = "" if unknown is None else f"spp-jax: {unknown!r} is no command\n\n"
    return (
        f"{said}usage: spp-jax COMMAND [OPTIONS]\n\n{commands}\n\nspp-jax COMMAND --help lists its options."
    )
