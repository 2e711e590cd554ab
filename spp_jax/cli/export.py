"""Export a judge, to be served with JAX alone. `spp-jax export --help` lists every option."""

import dataclasses
import sys
from pathlib import Path

import tyro

from spp_jax.addresses import AnyPath
from spp_jax.cli.evaluate import DONE, FAILED, WRONG_USE
from spp_jax.config import UsageError
from spp_jax.scoring import Scorer
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
    """Folder to write; it must not be there yet."""
    checkpoint: AnyPath = Path(__file__).parents[2] / "checkpoints" / "compact"
    """Folder of a run: the --out of train.py. Default: the judge that ships."""
    shapes: tuple[str, ...] = ()
    """Shapes of the programs, such as 600x800 (height x width). Default: those that usual photographs take,
    after the checkpoint's --max-pixels."""
    platforms: tuple[str, ...] = PLATFORMS
    """What the programs are for: cpu, cuda, tpu, rocm."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        options = tyro.cli(Options, args=arguments, prog="spp-jax export")
        shapes = [_shape(text) for text in options.shapes]
        if not set(options.platforms) <= {*PLATFORMS, "rocm"} or not options.platforms:
            raise UsageError(
                f"--platforms {' '.join(options.platforms)}: known are {', '.join(PLATFORMS)}, rocm"
            )
        scorer = Scorer.from_checkpoint(options.checkpoint)
        manifest = export_scorer(scorer, options.out, shapes, platforms=options.platforms)
    except (UsageError, FileExistsError, ValueError) as error:
        print(f"spp-jax export: {error}", file=sys.stderr)
        return WRONG_USE
    except ImportError as error:
        print(f"spp-jax export: {error}: pip install 'spp_jax[export]'", file=sys.stderr)
        return WRONG_USE
    except OSError as error:
        print(f"spp-jax export: {error}", file=sys.stderr)
        return FAILED
    print(f"{options.out}: {len(manifest['rungs'])} programs for {', '.join(options.platforms)}")
    return DONE


def _shape(text: str) -> tuple[int, int]:
    try:
        height, width = map(int, text.split("x"))
    except ValueError:
        raise UsageError(f"--shapes {text}: must be HEIGHTxWIDTH, such as 600x800") from None
    return height, width


if __name__ == "__main__":
    sys.exit(main())
