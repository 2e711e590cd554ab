"""The rating in an XMP sidecar: read, and written into the text such that all else in it stays byte for byte.

The text is parsed by expat, as one that anybody wrote: one that declares a document type (and so could
declare entities) is refused. See Adobe's "XMP Specification Part 1", 7.4 on how properties are written, and
8.4 on ``xmp:Rating``: -1 is rejected, 0 unrated, 1 to 5 are stars.
"""

import re
from typing import NamedTuple
from xml.parsers import expat

__all__ = ["LARGEST", "NotXmpError", "new_sidecar", "rating_in", "with_rating"]

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMP = "http://ns.adobe.com/xap/1.0/"
LARGEST = 2**24
"""Bytes of a sidecar, at most."""
_MOST = 100  # ratings of one sidecar
_ATTRIBUTE = re.compile(rb"""([^\s=/>"']+)\s*=\s*("[^"]*"|'[^']*')""")


class NotXmpError(Exception):
    """It is not XMP, or none that is safe to write into; says why, to stand after a file's name."""


class _Place(NamedTuple):
    """Where a rating stands: its text, and the bytes of it."""

    text: str
    start: int
    stop: int


class _Parsed:
    """Ratings of a sidecar and where a new one would go."""

    def __init__(self, content: bytes):
        self._content = content
        self.ratings: list[_Place] = []
        self.description: tuple[int, dict[str, str]] | None = None  # where it starts, prefixes there
        self._stack: list[str] = []
        self._scopes: list[tuple[str, str]] = []
        self._rating: tuple[int, list[str]] | None = None  # an element: where its text starts, the text
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.ordered_attributes = True
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.EntityDeclHandler = self._refuse
        parser.StartNamespaceDeclHandler = lambda prefix, uri: self._scopes.append((prefix or "", uri or ""))
        parser.EndNamespaceDeclHandler = lambda prefix: self._scopes.pop()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        self._parser = parser
        try:
            parser.Parse(content, True)
        except expat.ExpatError as error:
            raise NotXmpError(f"is no XML ({error})") from None

    def _refuse(self, *declared) -> None:
        raise NotXmpError("declares a document type, which XMP does not")

    def _start(self, name: str, attributes: list[str]) -> None:
        at = self._parser.CurrentByteIndex
        if name == f"{_RDF} Description" and self._stack[-1:] == [f"{_RDF} RDF"]:
            if self.description is None:
                self.description = at, dict(self._scopes)
            if f"{_XMP} Rating" in attributes[::2]:
                self._found(self._in_tag(at))
        elif name == f"{_XMP} Rating" and self._stack[-2:] == [f"{_RDF} RDF", f"{_RDF} Description"]:
            self._rating = _end_of_tag(self._content, at), []
        elif self._rating is not None:
            raise NotXmpError("has a rating of parts, which ours would not be")
        self._stack.append(name)

    def _text(self, text: str) -> None:
        if self._rating is not None:
            self._rating[1].append(text)

    def _end(self, name: str) -> None:
        self._stack.pop()
        if self._rating is not None:
            start, texts = self._rating
            stop = self._parser.CurrentByteIndex
            if self._content[start - 2 : start] == b"/>":
                raise NotXmpError("has an element for the rating that is closed at once")
            self._found(_Place("".join(texts), start, stop))
            self._rating = None

    def _found(self, place: _Place) -> None:
        if len(self.ratings) == _MOST:
            raise NotXmpError(f"has more than {_MOST} ratings")
        self.ratings.append(place)

    def _in_tag(self, at: int) -> _Place:
        prefixes = {prefix for prefix, uri in dict(self._scopes).items() if uri == _XMP}
        for match in _ATTRIBUTE.finditer(self._content, at, _end_of_tag(self._content, at)):
            prefix, _, local = match[1].decode().partition(":")
            if local == "Rating" and prefix in prefixes:
                return _Place(match[2][1:-1].decode(), match.start(2) + 1, match.end(2) - 1)
        raise NotXmpError("has a rating that is not found")


def _end_of_tag(content: bytes, at: int) -> int:
    """Behind the start tag that begins here, whose attributes may hold what looks like its end."""
    found = re.compile(rb"""<(?:[^"'>]|"[^"]*"|'[^']*')*>""").match(content, at)
    assert found  # the parser has seen it
    return found.end()


def _parsed(content: bytes) -> _Parsed:
    if len(content) > LARGEST:
        raise NotXmpError(f"has more than {LARGEST:,} bytes")
    if b"\0" in content[:4] or content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise NotXmpError("is in UTF-16 or UTF-32")
    found = _Parsed(content)
    if found.description is None:
        raise NotXmpError("holds no description of a photograph")
    return found


def rating_in(content: bytes) -> str:
    """The rating of a sidecar, as it is written there; empty where there is none, or 0, which means none.

    Raises:
        NotXmpError: it is no XMP.
    """
    return next((text for place in _parsed(content).ratings if (text := _stars(place.text))), "")


def _stars(text: str) -> str:
    try:
        return text.strip() if float(text) else ""
    except ValueError:
        return text.strip()


def with_rating(content: bytes, rating: int) -> bytes:
    """The sidecar with this rating, in place of any that it has; all else as it is.

    Raises:
        NotXmpError: it is no XMP, or writes its rating in a way that is not known here.
    """
    parsed = _parsed(content)
    value = str(rating).encode()
    for place in reversed(parsed.ratings):
        content = content[: place.start] + value + content[place.stop :]
    if not parsed.ratings:
        content = _added(content, parsed, value)
    if rating_in(content) != str(rating):
        raise NotXmpError("writes its rating in a way that is not known")
    return content


def _added(content: bytes, parsed: _Parsed, value: bytes) -> bytes:
    """With a rating as the first attribute of the first description."""
    assert parsed.description
    at, scope = parsed.description
    name = re.compile(rb"<[^\s/>]+").match(content, at)
    assert name
    prefix = next((prefix for prefix, uri in scope.items() if prefix and uri == _XMP), None)
    declared = b""
    if prefix is None:
        free = (f"xmp{number or ''}" for number in range(len(scope) + 1))
        prefix = next(prefix for prefix in free if prefix not in scope)
        declared = f' xmlns:{prefix}="{_XMP}"'.encode()
    added = declared + f' {prefix}:Rating="'.encode() + value + b'"'
    return content[: name.end()] + added + content[name.end() :]


def new_sidecar(rating: int) -> bytes:
    """A sidecar that says this alone."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="spp_jax">\n'
        f' <rdf:RDF xmlns:rdf="{_RDF}">\n'
        f'  <rdf:Description rdf:about="" xmlns:xmp="{_XMP}" xmp:Rating="{rating}"/>\n'
        " </rdf:RDF>\n</x:xmpmeta>\n"
        '<?xpacket end="w"?>\n'
    ).encode()
