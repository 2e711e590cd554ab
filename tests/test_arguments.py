"""How options are read."""

import dataclasses

import pytest

from spp_jax.cli.arguments import parsed


@dataclasses.dataclass(frozen=True)
class Above:
    """What several commands share."""

    judge: str = "quality"
    """Who judges. One
    and two."""


@dataclasses.dataclass(frozen=True)
class Inner:
    """Options of one kind."""

    top: int | None = None
    """Keep the best
    N. Default: all."""


@dataclasses.dataclass(frozen=True)
class Options(Above):
    """Do it."""

    inner: Inner = dataclasses.field(default_factory=Inner)


def test_help_flows_whatever_the_lines_of_its_source(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parsed(Options, "it", ["--help"])
    said = capsys.readouterr().out
    assert "Who judges. One and two. (default: quality)" in said
    assert "Keep the best N. Default: all." in said
    assert "(default: None)" not in said  # what it means is said already


def test_options_are_what_they_were():
    found = parsed(Options, "it", ["--judge", "me", "--inner.top", "3"])
    assert found == parsed(Options, "it", ["--judge=me", "--inner.top=3"])
    assert found == Options(judge="me", inner=Inner(top=3))
    assert parsed(Options, "it", [], default=found) == found
