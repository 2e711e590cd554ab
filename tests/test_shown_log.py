"""What a command shows of the package's log."""

import dataclasses
import io
import logging

from spp_jax.cli.program import DONE, run_program


@dataclasses.dataclass(frozen=True)
class Options:
    """None."""


def test_a_line_of_the_log_is_shown_once_though_a_library_shows_the_log_too(capsys):
    root, of_library = logging.getLogger(), io.StringIO()
    handler = logging.StreamHandler(of_library)

    def work() -> int:
        root.addHandler(handler)  # as logging.info of a library does, where there was none
        logging.getLogger("spp_jax.run.job").info("preparing the data set, once")
        return DONE

    try:
        assert run_program("spp-jax train", Options, work) == DONE
        logging.getLogger("spp_jax.run.job").warning("of the library alone")
    finally:
        root.removeHandler(handler)
    said = capsys.readouterr()
    assert (said.out + said.err).count("preparing the data set, once") == 1
    assert of_library.getvalue() == "of the library alone\n"
