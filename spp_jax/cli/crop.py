"""`spp-jax crop`: write the part of a photograph that is judged best."""

import dataclasses
from pathlib import Path

from spp_jax.cli.arguments import parsed
from spp_jax.cli.judging import OnePhoto, new_file, read_errors
from spp_jax.cli.program import DONE, run_program
from spp_jax.data.cutting import ENDINGS, cut
from spp_jax.errors import UsageError
from spp_jax.names import printable
from spp_jax.scoring.crops import wanted

__all__ = ["main"]


@dataclasses.dataclass(frozen=True)
class Options(OnePhoto):
    """Find the part of a photograph that is judged best, and write it.

    A JPEG keeps its quality, its colour profile and its EXIF data. The photograph itself is left as it is.

    Exit status: 0 done; 1 failed, for example because the photograph cannot be read; 2 wrong use.
    """

    out: Path | None = None
    """File for the best crop: .jpg, .png, .tif or .webp. Default: no file, only what is printed."""
    aspect: tuple[str, ...] = ()
    """Shapes of the crops, width:height, such as 4:5. Default: the photograph's own."""
    count: int = 1
    """How many crops are printed. The best one is written."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""

    def work() -> int:
        options = parsed(Options, "spp-jax crop", arguments)
        wanted(options.aspect, options.count)
        if options.out is not None:
            if options.out.suffix.lower() not in ENDINGS:
                raise UsageError(f"out {options.out} must end in one of {', '.join(ENDINGS)}", "out")
            new_file(options.out, options.photo, options.overwrite)
        return _crop(options)

    return run_program("spp-jax crop", Options, work)


def _crop(options: Options) -> int:
    scorer = options.scorer()
    with read_errors(options.photo):
        aspects = options.aspect or (None,)
        crops = scorer.crops(options.photo, aspects, options.count, attribute=options.attribute)
        if not crops:
            raise UsageError(f"{options.photo} is too small for a crop of that shape")
        print(f"{crops[0].original:.4f}  {printable(str(options.photo))}")
        for crop in crops:
            left, top, right, bottom = crop.box
            shape = "" if crop.aspect is None else f"  {crop.aspect}"
            print(f"{crop.score:.4f}  {right - left} x {bottom - top} from x {left}, y {top}{shape}")
        if options.out is not None:
            cut(options.photo, crops[0].box, options.out)
            if crops[0].score <= crops[0].original:
                print("no crop of that shape is judged better than the whole photograph")
    return DONE
