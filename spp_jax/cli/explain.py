"""`spp-jax explain`: why a photograph has its score, as a picture."""

import dataclasses
from pathlib import Path

import numpy as np

from spp_jax.cli.arguments import parsed
from spp_jax.cli.judging import OnePhoto, new_file, read_errors
from spp_jax.cli.program import DONE, run_program
from spp_jax.data.decoding import decode
from spp_jax.errors import UsageError
from spp_jax.names import printable
from spp_jax.scoring.drawing import check_drawing, draw_explanation

__all__ = ["main"]


@dataclasses.dataclass(frozen=True)
class Options(OnePhoto):
    """Explain a photograph's score: where it is good, which spots won, and how its parts add up.

    Exit status: 0 done; 1 failed, for example because the photograph cannot be read; 2 wrong use.
    """

    out: Path | None = None
    """PNG to draw: the photograph, the scores of its parts, the winning spots, and the parts of the score. Or
    .npz, for the arrays map, parts and parts_names. Default: no file, only what is printed."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""

    def work() -> int:
        options = parsed(Options, "spp-jax explain", arguments)
        if options.out is not None:
            if options.out.suffix.lower() not in (".png", ".npz"):
                raise UsageError(f"out {options.out} must end in .png or .npz", "out")
            if options.out.suffix.lower() == ".png":
                check_drawing()
            new_file(options.out, options.photo, options.overwrite)
        return _explain(options)

    return run_program("spp-jax explain", Options, work)


def _explain(options: Options) -> int:
    scorer = options.scorer()
    with read_errors(options.photo):
        why = scorer.explain(options.photo, attribute=options.attribute)
        print(f"{why.score:.4f}  {printable(str(options.photo))}")
        low, high = (np.unravel_index(place, why.map.shape) for place in (why.map.argmin(), why.map.argmax()))
        for name, (y, x) in (("best", high), ("worst", low)):
            print(f"{name} part: {why.map[y, x]:.4f}, the {why.window} pixels around x {x}, y {y}")
        width = max(map(len, why.parts))
        for name, amount in why.parts.items():
            print(f"  {name:{width}}  {amount:+.4f}")
        print(f"  {'logit':{width}}  {why.logit:+.4f}")
        if options.out is None:
            return DONE
        if options.out.suffix.lower() == ".npz":
            names, amounts = np.array(list(why.parts)), np.array(list(why.parts.values()))
            np.savez(options.out, map=why.map, parts=amounts, parts_names=names)
        else:
            draw_explanation(decode(options.photo, scorer.config.decoding), why, options.out)
    return DONE
