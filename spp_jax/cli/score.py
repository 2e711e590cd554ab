"""`spp-jax score`: score photographs, or folders of them; say, keep, copy and star the best."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from spp_jax.addresses import is_address
from spp_jax.cli.arguments import AnyPath, parsed
from spp_jax.cli.gathering import Gathering, name_below
from spp_jax.cli.page import without_own, write_gallery
from spp_jax.cli.placing import copy_into, link_into
from spp_jax.cli.program import DONE, SKIPPED, run_program
from spp_jax.cli.score_file import ScoreFile
from spp_jax.cli.scored import limited, say_entries, score_paths, tell_passed
from spp_jax.cli.stars import check_thresholds, write_stars
from spp_jax.compilation import default_cache_dir, use_compilation_cache
from spp_jax.data.duplicates import needs_imagehash
from spp_jax.data.finding import find_photos
from spp_jax.errors import UsageError
from spp_jax.names import printable, some
from spp_jax.scoring import DEFAULT, Entry, Scored, Scorer, best_first, in_series, judge_of
from spp_jax.scoring.gallery import BEST, SCORES, Gallery

__all__ = ["main"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which are the best, and what is done with them."""

    sort: bool = False
    """Print the scores at the end, best first, and write --out in that order. Default: as they come."""
    attribute: str | None = None
    """Which of the things judged decides on rank, picks and stars. Default: the first."""
    top: int | None = None
    """Keep the best N: these are printed, written to --out, copied, linked and given stars. The lines of all
    photographs are kept beside --out, in a file whose name ends in .all, so the next run scores none again.
    Default: all."""
    best_of_series: bool = False
    """Keep the best of each series: it is printed with the reason, copied, linked, given stars, and counts
    for --top. Photographs are of one series if one camera took them shortly after one another (by EXIF), or
    if they look alike. Needs pip install 'spp_jax[duplicates]'."""
    burst_seconds: float = 2.0
    """With --best-of-series: how many seconds lie between two photographs of a burst, at most. A negative
    number means that there are no bursts."""
    look_alikes: bool = True
    """With --best-of-series: photographs are of one series if at most 6 of the 64 bits of their perceptual
    hashes differ. With --no-look-alikes only bursts count, and nothing has to be installed."""
    copy_best: Path | None = None
    """Copy what --top or --best-of-series keeps into this folder, which is made if it is missing. No file is
    overwritten: if another file has the name, the copy gets a number. Default: nothing is copied."""
    link_best: Path | None = None
    """Put symbolic links to what --top or --best-of-series keeps into this folder, as --copy-best does with
    copies. Default: nothing is linked."""


@dataclasses.dataclass(frozen=True)
class Stars:
    """Ratings for photo programs."""

    write_xmp: bool = False
    """Write stars (xmp:Rating, 1 to 5) into an XMP sidecar beside each photograph, which is left as it is. A
    rating that is there, in a sidecar or in the photograph, stands. A sidecar without one keeps all else."""
    stars: tuple[float, float, float, float] = (0.2, 0.4, 0.6, 0.8)
    """With --write-xmp: the scores from which on there are 2, 3, 4 and 5 stars."""
    sidecar: Literal["full", "stem"] = "full"
    """With --write-xmp: what a new sidecar is called. full is photo.jpg.xmp, as darktable and digiKam have
    it. stem is photo.xmp, as Lightroom and Capture One have it, and belongs to the raw file if a JPEG has the
    same name. A sidecar that is there under either name is used."""
    overwrite_ratings: bool = False
    """With --write-xmp: replace ratings, too. A photograph is not changed: its sidecar gets the stars."""


@dataclasses.dataclass(frozen=True)
class Page:
    """A page to look at them all."""

    gallery: AnyPath | None = None
    """Folder for a page of all photographs: index.html, which a browser opens, and thumbnails. It is made, or
    is empty, or a gallery already. Run it again, and it goes on; without --out, it keeps the scores, too."""
    explain_best: int = BEST
    """With --gallery: how many photographs, the best ones, are shown with map, winners and crops. Each takes
    as long as the scores of dozens. 0: none."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Score photographs, or folders of them. Each score is printed as soon as it is known.

    Nothing is deleted, moved or overwritten, but for the file of --out.

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
    """File for the scores: .csv, .jsonl (one a line), .json or .parquet. Each score is written as soon as it
    is known, so nothing is lost when the command is killed; rank, percentile and series are filled in at the
    end. Run it again with the same file: photographs that it holds, by length and time of change, are not
    scored again by the same judge."""
    choice: Annotated[Choice, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Choice)
    rating: Annotated[Stars, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Stars)
    page: Annotated[Page, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Page)
    engine: Literal["local", "ray"] = "local"
    """Who scores: this machine, or the workers of a Ray cluster (RAY_ADDRESS names it; without one, workers
    on this machine). Paths and checkpoint must be where every worker finds them."""
    workers: int | None = None
    """With --engine ray, how many. Default: one for each GPU of the cluster, or for each machine."""
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
        options = parsed(Options, "spp-jax score", arguments)
        if not options.photos:
            raise UsageError("give photographs, or folders of them")
        _check(options)
        use_compilation_cache(options.cache_dir)
        if options.engine == "ray":
            jax.config.update("jax_platforms", "cpu")  # a device here is a worker's
        return _score(options)

    return run_program("spp-jax score", Options, work)


def _check(options: Options) -> None:
    """Refuse what does not go together, before anything is loaded.

    Raises:
        UsageError: says what.
    """
    choice = options.choice
    if options.programs < 1:
        raise UsageError(f"programs must be at least 1, not {options.programs}", "programs")
    if options.workers is not None and options.engine != "ray":
        raise UsageError(f"workers={options.workers} is for --engine ray", "workers")
    if choice.top is not None and choice.top < 1:
        raise UsageError(f"top must be at least 1, not {choice.top}", "top")
    if options.page.explain_best < 0:
        raise UsageError(f"explain_best must be at least 0, not {options.page.explain_best}", "explain_best")
    check_thresholds(options.rating.stars)
    for flag, folder in (("--copy-best", choice.copy_best), ("--link-best", choice.link_best)):
        if folder is None:
            continue
        if choice.top is None and not choice.best_of_series:
            raise UsageError(f"{flag} {folder}: --top or --best-of-series says which are the best")
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{flag} {folder}: is no folder")
        if any(_inside(photo, folder) for photo in options.photos):
            raise UsageError(f"{flag} {folder}: holds the photographs themselves; name another")
    if choice.link_best is not None and any(is_address(photo) for photo in options.photos):
        raise UsageError(f"--link-best {choice.link_best}: no link leads to an address; --copy-best copies")
    if choice.best_of_series and choice.look_alikes:
        needs_imagehash("--best-of-series without --no-look-alikes")


def _score(options: Options) -> int:
    choice, gallery = options.choice, options.page.gallery and Gallery(options.page.gallery)
    found = find_photos(options.photos)
    tell_passed(found)
    photos = list(dict.fromkeys(found.photos))
    if gallery:
        photos = without_own(photos, gallery)
    for folder in (choice.copy_best, choice.link_best):
        others = [photo for photo in photos if not (folder and _inside(photo, folder))]
        if len(others) < len(photos):
            passed = len(photos) - len(others)
            print(f"passed over: {passed} in {printable(folder)}, where the best go", file=sys.stderr)
        photos = others
    if not photos:
        raise UsageError(some(found.skipped) or "there is no photograph to score")
    scorer = judge_of(options.judge, options.checkpoint, programs=options.programs)
    limited(scorer, options.refuse_pixels, options.refuse_seconds)
    by = _column(scorer, choice.attribute)
    if options.dry_run:
        print(scorer.forecast([*photos]))
        return DONE
    names = [name_below(photo, options.photos) for photo in photos]
    at_once = not (choice.sort or choice.top is not None or choice.best_of_series)
    out = options.out or (gallery and gallery.begin() / SCORES)
    with contextlib.ExitStack() as stack:
        file = None
        if out:
            only_best = bool(options.out) and choice.top is not None
            file = ScoreFile(out, scorer.digest, scorer.attributes, only_best=only_best)
            stack.enter_context(file)
        gathering = stack.enter_context(Gathering(photos, names, scorer.config.decoding, file))
        kept = [Scored(e.place, e.scores, e.reason) for e in gathering.kept]
        local = options.engine == "local"
        watch = gallery.watch(scorer, photos) if gallery and local else None
        judges = scorer if local else _workers(options, scorer)
        status = score_paths(
            judges, photos, gathering.keep, kept, found.skipped, at_once=at_once, watch=watch
        )
        entries = gathering.entries(by)
        if choice.best_of_series:
            entries = gathering.in_series(entries, choice.burst_seconds, by, look_alikes=choice.look_alikes)
        best = _best(entries, choice)
        if file is not None:
            file.finish(best_first(entries) if choice.sort else entries, best if options.out else None)
    if gallery:
        _show(gallery, scorer, entries, options, by)
    if not at_once:
        say_entries(best, scorer.attributes)
    return max(status, _use(best, options, by))


def _show(gallery: Gallery, scorer: Scorer, entries: list[Entry], options: Options, by: int) -> None:
    """Write the page: of all, their bursts together where no series were asked for."""
    choice = options.choice
    if not choice.best_of_series:
        entries = in_series(entries, choice.burst_seconds, by, look_alikes=False)
    judge = str(options.checkpoint or f"the judge {options.judge}")
    given = options.photos[0].absolute().name if len(options.photos) == 1 else ""
    write_gallery(
        gallery,
        scorer,
        entries,
        by=by,
        best=options.page.explain_best,
        judge=judge,
        title=given or "Photographs by score",
    )


def _workers(options: Options, scorer: Scorer) -> Any:
    """Workers with a scorer each, which score as this one does."""
    from spp_jax.scoring.on_ray import Judge, RayScorer

    judge = Judge(
        checkpoint=None if options.checkpoint is None else os.fspath(options.checkpoint),
        name=options.judge,
        programs=options.programs,
        limits={name: getattr(scorer.config, name) for name in ("refuse_pixels", "refuse_seconds")},
        cache_dir=options.cache_dir,
    )
    return RayScorer(judge, workers=options.workers, scorer=scorer)


def _column(scorer: Scorer, attribute: str | None) -> int:
    if attribute is None:
        return 0
    if attribute not in scorer.attributes:
        known = ", ".join(scorer.attributes)
        raise UsageError(f"attribute {attribute} is not judged; judged are {known}", "attribute")
    return scorer.attributes.index(attribute)


def _best(entries: Sequence[Entry], choice: Choice) -> list[Entry]:
    """Those that are said, copied and given stars, in the order in which they are said."""
    found = [entry for entry in entries if entry.rank is not None]
    if choice.best_of_series:
        found = [entry for entry in found if entry.pick]
    if choice.sort or choice.top is not None:
        found = best_first(found)
    return found[: choice.top]


def _use(best: Sequence[Entry], options: Options, by: int) -> int:
    """Copy, link and give stars, as asked for; returns the exit status."""
    choice, rating = options.choice, options.rating
    for folder, done, into in (
        (choice.copy_best, "copied", copy_into),
        (choice.link_best, "linked", link_into),
    ):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            new = sum(into(entry.path, folder) for entry in best)
            there = f", {len(best) - new} were there already" if new < len(best) else ""
            print(f"{done}: {new} to {printable(folder)}{there}", file=sys.stderr)
    if not rating.write_xmp:
        return DONE
    written = write_stars(
        best,
        rating.stars,
        by=by,
        in_place_of_ending=rating.sidecar == "stem",
        overwrite=rating.overwrite_ratings,
    )
    for name, reason in written.refused.items():
        print(f"{printable(name)}: {printable(reason)}", file=sys.stderr)
    had = f", {written.kept} had a rating, which stands" if written.kept else ""
    print(f"stars: {written.written} sidecars written{had}", file=sys.stderr)
    return SKIPPED if written.refused else DONE


def _inside(photo: Path, folder: Path) -> bool:
    """Whether it is the folder, or lies in it."""
    if is_address(photo):
        return False
    return photo.absolute().is_relative_to(folder.absolute()) or photo.resolve().is_relative_to(
        folder.resolve()
    )
