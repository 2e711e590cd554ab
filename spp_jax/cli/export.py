"""`spp-jax export`: write a judge as files that JAX and NumPy alone can run."""

import dataclasses
from pathlib import Path

from spp_jax.cli.arguments import AnyPath, parsed
from spp_jax.cli.program import DONE, run_program
from spp_jax.errors import UsageError
from spp_jax.scoring import DEFAULT, judge_of
from spp_jax.scoring.export import PLATFORMS, export_scorer

__all__ = ["main"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Write a judge as files that JAX and NumPy alone can run.

    A program for each of a few shapes, for any number of pictures at a time; the variables; a manifest; and
    judge.py, which loads and runs them.

    Exit status: 0 done; 1 failed; 2 wrong use.
    """

    out: Path
    """Folder to write. It must not be there yet."""
    checkpoint: AnyPath | None = None
    """Folder of a run, the --out of spp-jax train. Default: the judge quality, which ships."""
    shapes: tuple[str, ...] = ()
    """Shapes of the programs, such as 600x800 (height x width). Default: those that usual photographs take,
    after the checkpoint's --max-pixels."""
    platforms: tuple[str, ...] = PLATFORMS
    """Devices that the programs are for: cpu, cuda, tpu, rocm."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""

    def work() -> int:
        options = parsed(Options, "spp-jax export", arguments)
        shapes = [_shape(text) for text in options.shapes]
        if not set(options.platforms) <= {*PLATFORMS, "rocm"} or not options.platforms:
            known = ", ".join(PLATFORMS)
            raise UsageError(f"--platforms {' '.join(options.platforms)}: known are {known}, rocm")
        scorer = judge_of(DEFAULT, options.checkpoint)
        try:
            manifest = export_scorer(scorer, options.out, shapes, platforms=options.platforms)
        except ImportError as error:
            raise UsageError(f"{error}: pip install 'spp_jax[export]'") from None
        except (FileExistsError, ValueError) as error:
            raise UsageError(str(error)) from None
        print(f"{options.out}: {len(manifest['rungs'])} programs for {', '.join(options.platforms)}")
        return DONE

    return run_program("spp-jax export", Options, work)


def _shape(text: str) -> tuple[int, int]:
    try:
        height, width = map(int, text.split("x"))
    except ValueError:
        raise UsageError(f"--shapes {text}: must be HEIGHTxWIDTH, such as 600x800") from None
    return height, width
