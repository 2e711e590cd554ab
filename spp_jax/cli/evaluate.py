"""`spp-jax evaluate`: apply a trained judge, to a split of a data set or to photographs."""

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spp_jax.addresses import writing
from spp_jax.cli.arguments import AnyPath, parsed
from spp_jax.cli.program import DONE, FAILED, SKIPPED, run_program
from spp_jax.cli.scored import limited, score_paths, tell_passed
from spp_jax.compilation import default_cache_dir, use_compilation_cache, user_folder
from spp_jax.data import load_dataset
from spp_jax.data.finding import find_photos
from spp_jax.data.records import SPLITS, Records, split_records
from spp_jax.errors import UsageError
from spp_jax.names import printable, some
from spp_jax.scoring import DEFAULT, Scored, Scorer, judge_of

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """Apply a trained judge: to a split of a data set (--data), or to photographs (--photos).

    Exit status: 0 done; 1 failed; 2 wrong use; 3 done, and photographs were skipped (each is named on
    standard error).
    """

    checkpoint: AnyPath | None = None
    """Folder of a run, the --out of spp-jax train. Default: the judge that --judge names."""
    judge: str = DEFAULT
    """A judge that ships: quality, beauty, all (both of them, in one pass), or compact, a small one. Its
    card, in checkpoints/, says what it has learned, and what it has not."""
    data: str | None = None
    """Data set to evaluate on. Give this or --photos."""
    split: str = "test"
    """Part of the data set: train, validation or test."""
    protocol: str | None = None
    """How the data set is split: folds, random or official. Default: as in training."""
    fold: int | None = None
    """Fold of the split. Default: the one the model was trained for, so that test means unseen; of another
    protocol, 0."""
    photos: tuple[AnyPath, ...] = ()
    """Photographs to score, or folders, with all folders in them."""
    refuse_pixels: int | None = None
    """Photographs of more pixels are skipped. Default: as in training."""
    refuse_seconds: float | None = None
    """Photographs that take more seconds of processor time to decode are skipped. Default: as in training,
    which is 10 if nothing else was asked for."""
    out: Path | None = None
    """JSON file for the figures. Default for --data: in the folder of the checkpoint, metrics.json for
    the test part of the fold trained for, else metrics-SPLIT-foldN.json, with the names of data set and
    protocol where these differ from the training's; none for --photos."""
    data_dir: AnyPath = user_folder() / "data"
    """Where prepared data sets are kept, and downloads put, in manual/NAME; of --data folder, the folder."""
    outside_files: bool = False
    """With --data folder, files may lie outside of the folder, by absolute names, '..' or links."""
    cache_dir: str = default_cache_dir()
    """Folder for compiled programs, also one that several hosts share, or gs://... Whoever can write there
    can run programs as you. Default: $JAX_COMPILATION_CACHE_DIR, or a folder that is private to you."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""

    def work() -> int:
        options = parsed(Options, "spp-jax evaluate", arguments)
        if bool(options.data) == bool(options.photos):
            raise UsageError("give either --data NAME or --photos PATH [PATH ...]")
        if options.out and not options.out.absolute().parent.is_dir():
            raise UsageError(f"--out {options.out}: there is no folder {options.out.absolute().parent}")
        use_compilation_cache(options.cache_dir)
        scorer = judge_of(options.judge, options.checkpoint)
        limited(scorer, options.refuse_pixels, options.refuse_seconds)
        return _evaluate_data(scorer, options) if options.data else _score_photos(scorer, options)

    return run_program("spp-jax evaluate", Options, work)


def _evaluate_data(scorer: Scorer, options: Options) -> int:

    assert options.data
    if options.split not in SPLITS:
        raise UsageError(f"--split {options.split}: unknown; known are {', '.join(SPLITS)}")
    protocol = options.protocol or scorer.config.protocol
    trained = scorer.config.fold if protocol == scorer.config.protocol else 0
    fold = trained if options.fold is None else options.fold
    records, unread = load_dataset(
        options.data,
        options.data_dir,
        scorer.config.decoding,
        outside_files=options.outside_files,
        near_duplicates=scorer.config.near_duplicates and options.data == "folder",
    )
    try:
        records = split_records(_judged_by(scorer, records), options.split, protocol, fold)
    except ValueError as error:
        raise UsageError(str(error)) from None
    records, skipped = records.usable(scorer.min_size, unread)
    if not len(records):
        raise UsageError(
            f"--data {options.data}: no picture of {options.split} can be read and is large enough: "
            f"{some(skipped)}"
        )
    with tqdm(total=len(records), unit="photo", desc="score", mininterval=1) as bar:
        scores, failed = scorer.score_records(records, progress=bar.update)
    skipped |= {records.ids[index]: reason for index, reason in failed.items()}
    if len(failed) == len(records):
        _name_skipped(skipped)
        raise UsageError(f"--data {options.data}: no picture of {options.split} could be read")
    result = records.agreement(scores)
    described = {"data": options.data, "split": options.split, "protocol": protocol, "fold": fold}
    described |= result.to_dict()
    trained_for = (scorer.config.data, scorer.config.protocol, scorer.config.fold)
    held_out = options.split == "test" and (options.data, protocol, fold) == trained_for
    differing = [options.data] if options.data != scorer.config.data else []
    differing += [protocol] if protocol != scorer.config.protocol else []
    name = "-".join(["metrics", *differing, options.split, f"fold{fold}"])
    name = "metrics.json" if held_out else f"{name}.json"
    out = options.out or (options.checkpoint or Path()) / name  # of a judge that ships, where one works
    status = _name_skipped(skipped)
    try:  # before anything is printed, which nobody may read any more
        with writing(out):
            out.write_text(json.dumps(described, indent=2) + "\n")
    except OSError as error:
        said = f"the figures are not kept: {error}"
        _log.warning(said if options.out else f"{said} (--out says where)")
        status = FAILED if options.out else status
    print(f"{options.data}, {options.split}, {protocol}, fold {fold}")
    print(result.table())
    return status


def _judged_by(scorer: Scorer, records: Records) -> Records:
    """With the labels that are judged; of one attribute that is unknown here, with the score."""
    labels = scorer.config.labels
    if len(labels) == 1 and labels[0] not in (*records.attributes, *records.labels):
        return records.judged_by(("score",))
    return records.judged_by(labels)


def _score_photos(scorer: Scorer, options: Options) -> int:
    found = find_photos(options.photos)
    tell_passed(found)
    if not found.photos:
        raise UsageError(some(found.skipped))
    scores: dict[str, Any] = {}

    def keep(photo: Path, scored: Scored) -> None:
        scores[str(photo)] = None if scored.reason else scorer.named(scored)

    status = score_paths(scorer, found.photos, keep, skipped=found.skipped)
    if options.out:
        described = {str(photo): scores[str(photo)] for photo in found.photos}
        with writing(options.out):
            options.out.write_text(json.dumps(described, indent=2) + "\n")
    return status


def _name_skipped(skipped: dict[str, str]) -> int:
    for name, reason in skipped.items():
        print(f"skipped {printable(name)}: {printable(reason)}", file=sys.stderr)
    if skipped:
        print(f"{len(skipped)} photographs skipped", file=sys.stderr)
    return SKIPPED if skipped else DONE
