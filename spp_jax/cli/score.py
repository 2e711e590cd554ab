"""Score photographs. `spp-jax score --help` lists every option."""

import dataclasses
import os
import sys
from pathlib import Path

import tyro

from spp_jax.addresses import AnyPath
from spp_jax.cli.evaluate import DONE, FAILED, SKIPPED, WRONG_USE, _expand
from spp_jax.cli.scored import ScoreFile, score_paths
from spp_jax.compilation import DoesNotFitError, default_cache_dir, use_compilation_cache
from spp_jax.config import UsageError
from spp_jax.scoring import Scorer

__all__ = ["DONE", "FAILED", "SKIPPED", "WRONG_USE", "main"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Score photographs, or folders of them: each score is said when it is known.

    Exit status: 0 done; 1 failed; 2 wrong use; 3 done, with photographs skipped (each named on standard
    error).
    """

    photos: tyro.conf.Positional[tuple[AnyPath, ...]]
    """Photographs, or folders of them (searched to the bottom)."""
    checkpoint: AnyPath = Path(__file__).parents[2] / "checkpoints" / "compact"
    """Folder of a run: the --out of train.py. Default: the judge that ships."""
    out: Path | None = None
    """File for the scores: .csv, .jsonl (one a line) or .json. Each is written when it is known. Run again
    with the same file, what it holds of the same photographs (by length and time of change) and the same
    checkpoint is not scored again: so nothing is lost when this is killed."""
    programs: int = 16
    """At most so many compiled programs are held in memory."""
    dry_run: bool = False
    """Say what would be compiled, and what that costs, and stop."""
    cache_dir: str = default_cache_dir()
    """Where compiled programs are kept: a folder, also one that several hosts share, or gs://... Trusted:
    who can write there can run programs as you. Default: $JAX_COMPILATION_CACHE_DIR, or private to you."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore  # file names need not be text
    try:
        options = tyro.cli(Options, args=arguments, prog="spp-jax score")
        if not options.photos:
            raise UsageError("give photographs, or folders of them")
        if options.programs < 1:
            raise UsageError(f"--programs {options.programs}: must be at least 1")
        use_compilation_cache(options.cache_dir)
        return _score(options)
    except UsageError as error:
        print(f"spp-jax score: {error}", file=sys.stderr)
        return WRONG_USE
    except BrokenPipeError:  # such as a pager that was left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (OSError, FloatingPointError, DoesNotFitError) as error:
        print(f"spp-jax score: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("spp-jax score: interrupted; with --out, run again, it goes on", file=sys.stderr)
        return FAILED


def _score(options: Options) -> int:
    photos = list(dict.fromkeys(_expand(options.photos)))
    scorer = Scorer.from_checkpoint(options.checkpoint, programs=options.programs)
    if options.dry_run:
        print(scorer.forecast(photos))
        return DONE
    if not options.out:
        return score_paths(scorer, photos, lambda photo, scored: None)
    with ScoreFile(options.out, scorer.digest) as file:
        return score_paths(scorer, photos, file.keep, file.kept(photos))


if __name__ == "__main__":
    sys.exit(main())
