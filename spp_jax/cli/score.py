"""`spp-jax score`: score photographs, or folders of them."""

import dataclasses
from pathlib import Path

import tyro

from spp_jax.cli.arguments import AnyPath
from spp_jax.cli.program import DONE, run_program
from spp_jax.cli.scored import ScoreFile, limited, score_paths, tell_passed
from spp_jax.compilation import default_cache_dir, use_compilation_cache
from spp_jax.data.finding import find_photos
from spp_jax.errors import UsageError
from spp_jax.names import some
from spp_jax.scoring import DEFAULT, Scorer

__all__ = ["main"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Score photographs, or folders of them. Each score is printed as soon as it is known.

    Exit status: 0 done; 1 failed; 2 wrong use; 3 done, and photographs were skipped (each is named on
    standard error); 75 interrupted: run it again with the same --out, and it goes on.
    """

    photos: tyro.conf.Positional[tuple[AnyPath, ...]]
    """Photographs, or folders, with all folders in them."""
    checkpoint: AnyPath | None = None
    """Folder of a run, the --out of spp-jax train. Default: the judge that --judge names."""
    judge: str = DEFAULT
    """A judge that ships: quality, beauty, all (both of them, in one pass), or compact, a small one."""
    refuse_pixels: int | None = None
    """Photographs of more pixels are skipped. Default: as in training."""
    refuse_seconds: float | None = None
    """Photographs that take more seconds of processor time to decode are skipped. Default: as in training,
    which is 10 if nothing else was asked for."""
    out: Path | None = None
    """File for the scores: .csv, .jsonl (one a line) or .json. Each score is written as soon as it is
    known, so nothing is lost when the command is killed. Run it again with the same file: photographs that
    it holds, by length and time of change, are not scored again by the same judge."""
    programs: int = 16
    """How many compiled programs are held in memory, at most."""
    dry_run: bool = False
    """Print what would be compiled, and what that costs, and stop."""
    cache_dir: str = default_cache_dir()
    """Folder for compiled programs, also one that several hosts share, or gs://... Whoever can write there
    can run programs as you. Default: $JAX_COMPILATION_CACHE_DIR, or a folder that is private to you."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""

    def work() -> int:
        options = tyro.cli(Options, args=arguments, prog="spp-jax score")
        if not options.photos:
            raise UsageError("give photographs, or folders of them")
        use_compilation_cache(options.cache_dir)
        return _score(options)

    return run_program("spp-jax score", Options, work)


def _score(options: Options) -> int:
    if options.programs < 1:
        raise UsageError(f"programs must be at least 1, not {options.programs}", "programs")
    found = find_photos(options.photos)
    tell_passed(found)
    photos = list(dict.fromkeys(found.photos))
    if not photos:
        raise UsageError(some(found.skipped))
    if options.checkpoint:
        scorer = Scorer.from_checkpoint(options.checkpoint, programs=options.programs)
    else:
        scorer = Scorer.from_pretrained(options.judge, programs=options.programs)
    limited(scorer, options.refuse_pixels, options.refuse_seconds)
    if options.dry_run:
        print(scorer.forecast([*photos]))
        return DONE
    if not options.out:
        return score_paths(scorer, photos, lambda photo, scored: None, skipped=found.skipped)
    with ScoreFile(options.out, scorer.digest, scorer.attributes) as file:
        return score_paths(scorer, photos, file.keep, file.kept(photos), found.skipped)
