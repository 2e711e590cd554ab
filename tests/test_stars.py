"""Stars in XMP sidecars, read back by exiv2; what else is in a sidecar stays byte for byte."""

import contextlib
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_jax.cli.stars import check_thresholds, stars_of, write_stars
from spp_jax.cli.xmp import NotXmpError, new_sidecar, rating_in, with_rating
from spp_jax.errors import UsageError
from spp_jax.scoring import Entry

XMP = "http://ns.adobe.com/xap/1.0/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
THRESHOLDS = (0.2, 0.4, 0.6, 0.8)
DARKTABLE = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about=""
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:darktable="http://darktable.sf.net/"
   darktable:xmp_version="5"
   darktable:params="a &gt; b">
   <dc:subject><rdf:Bag><rdf:li>sea > sand</rdf:li></rdf:Bag></dc:subject>
   <!-- kept -->
   <darktable:history><rdf:Seq><rdf:li darktable:num="0"/></rdf:Seq></darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
LIGHTROOM = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">
<rdf:Description rdf:about="" xmlns:xap='{XMP}' xap:CreatorTool="xap:Rating='9' >" xap:Rating = '2'
 xap:Label="Red"/></rdf:RDF></x:xmpmeta>"""
ELEMENT = f"""<rdf:RDF xmlns:rdf="{RDF}" xmlns:xmp="{XMP}"><rdf:Description rdf:about="">
<xmp:Rating>3</xmp:Rating><xmp:Label>Red</xmp:Label></rdf:Description></rdf:RDF>"""
NESTED = f"""<rdf:RDF xmlns:rdf="{RDF}" xmlns:xmp="{XMP}" xmlns:p="urn:p"><rdf:Description rdf:about="">
<p:of><rdf:Description xmp:Rating="5"/></p:of></rdf:Description></rdf:RDF>"""
TAKEN = f"""<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description xmlns:xmp="urn:mine" xmlns:xmp1="urn:too"
xmp:Rating="7"/></rdf:RDF>"""
ALL = {"darktable": DARKTABLE, "lightroom": LIGHTROOM, "element": ELEMENT, "nested": NESTED, "taken": TAKEN}


def ratings(content: bytes) -> list[str]:
    """By another parser: of each description of the packet itself."""
    found = []
    for description in ElementTree.fromstring(content).iter(f"{{{RDF}}}RDF"):
        for child in description:
            found += [child.attrib[f"{{{XMP}}}Rating"]] if f"{{{XMP}}}Rating" in child.attrib else []
            found += [element.text or "" for element in child.findall(f"{{{XMP}}}Rating")]
    return found


class TestText:
    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize("start", ["", "\ufeff"])
    def test_a_rating_is_put_in_and_all_else_stays(self, name, start):
        before = (start + ALL[name]).encode()
        after = with_rating(before, 4)
        assert ratings(after) == ["4"]
        assert rating_in(after) == "4"
        old = {"lightroom": (b"'2'", b"'4'"), "element": (b">3<", b">4<")}
        if name in old:
            assert after == before.replace(*old[name])
        else:
            at = next(i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
            added = len(after) - len(before)
            cuts = [after[:i] + after[i + added :] for i in range(max(0, at - added), at + 1)]
            assert before in cuts

    def test_what_is_rated_is_known_and_0_is_not(self):
        assert [rating_in(text.encode()) for text in ALL.values()] == ["", "2", "3", "", ""]
        for text, rating in (("0", ""), ("0.0", ""), ("-1", "-1"), ("", ""), ("good", "good")):
            assert rating_in(ELEMENT.replace(">3<", f">{text}<").encode()) == rating

    def test_all_ratings_of_a_packet_are_replaced(self):
        twice = ELEMENT.replace("</rdf:RDF>", '<rdf:Description xmp:Rating="1"/></rdf:RDF>').encode()
        assert ratings(with_rating(twice, 5)) == ["5", "5"]

    @given(
        st.sampled_from(["xmp", "xap", "é"]),
        st.sampled_from(["", "0", "3", "-1"]),
        st.booleans(),
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
        st.integers(1, 5),
    )
    def test_any_prefix_place_and_text_beside_it(self, prefix, old, element, beside, rating):
        beside = beside.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
        beside = "".join(c for c in beside if c not in "\ufffe\uffff")
        within = f"<{prefix}:Rating>{old}</{prefix}:Rating>" if element else ""
        of_tag = "" if element else f'{prefix}:Rating="{old}"'
        text = (
            f'<rdf:RDF xmlns:rdf="{RDF}" xmlns:{prefix}="{XMP}"><rdf:Description {prefix}:Label="{beside}" '
            f"{of_tag}>{within}<{prefix}:Nickname>{beside}</{prefix}:Nickname></rdf:Description></rdf:RDF>"
        )
        after = with_rating(text.encode(), rating)
        assert ratings(after) == [str(rating)]
        assert after.decode() == text.replace(
            f">{old}</" if element else f'Rating="{old}"',
            f">{rating}</" if element else f'Rating="{rating}"',
            1,
        )

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "no XML"),
            (b"my thesis", "no XML"),
            (b"<html/>", "no description"),
            (DARKTABLE.encode()[:-20], "no XML"),
            (DARKTABLE.encode("utf-16"), "UTF-16"),
            (f'<!DOCTYPE x [<!ENTITY a "b">]>{ELEMENT}'.encode(), "document type"),
            (f'<!DOCTYPE x SYSTEM "file:///etc/passwd">{ELEMENT}'.encode(), "document type"),
            (ELEMENT.replace(">3<", "><p>3</p><").encode(), "of parts"),
            (ELEMENT.replace("<xmp:Rating>3</xmp:Rating>", "<xmp:Rating/>").encode(), "closed at once"),
            (
                ELEMENT.replace("<xmp:Rating>3</xmp:Rating>", "<xmp:Rating>3</xmp:Rating>" * 101).encode(),
                "100",
            ),
            (b" " * (2**24 + 1), "more than 16,777,216 bytes"),
        ],
    )
    def test_what_is_not_safe_to_write_into_is_refused(self, content, said):
        with pytest.raises(NotXmpError, match=said):
            with_rating(content, 3)

    @given(st.binary(max_size=60), st.integers(0, len(DARKTABLE)))
    def test_no_damage_raises_anything_else(self, damage, place):
        content = DARKTABLE.encode()
        content = content[:place] + damage + content[place + len(damage) :]
        with contextlib.suppress(NotXmpError):
            assert rating_in(with_rating(content, 2)) == "2"

    @pytest.mark.parametrize("name", ["darktable", "lightroom", "element", "new"])
    def test_exiv2_reads_it_and_all_else(self, tmp_path, name):
        pyexiv2 = pytest.importorskip("pyexiv2")
        before, after = tmp_path / "before.xmp", tmp_path / "after.xmp"
        text = ALL.get(name, new_sidecar(1).decode())
        if "xmpmeta" not in text:  # exiv2 knows a file by it
            text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{text}</x:xmpmeta>'
        before.write_bytes(text.encode())
        after.write_bytes(new_sidecar(5) if name == "new" else with_rating(before.read_bytes(), 5))
        with pyexiv2.Image(str(before)) as old, pyexiv2.Image(str(after)) as new:
            assert new.read_xmp() == old.read_xmp() | {"Xmp.xmp.Rating": "5"}


def entry(path: Path, score: float = 0.7, rating: int | None = None) -> Entry:
    return Entry(0, path, path.name, np.array([score], np.float32), rating=rating)


def made(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).write_bytes(name.encode())
    return [folder / name for name in names]


def stars_in(path: Path) -> str:
    return rating_in(path.read_bytes())


class TestSidecars:
    @pytest.mark.parametrize(("stem", "name"), [(False, "a.jpg.xmp"), (True, "a.xmp")])
    def test_a_new_one_has_the_name_asked_for(self, tmp_path, stem, name):
        (photo,) = made(tmp_path, "a.jpg")
        assert write_stars([entry(photo)], THRESHOLDS, in_place_of_ending=stem) == (1, 0, {})
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.jpg", name])
        assert stars_in(tmp_path / name) == "4"
        assert photo.read_bytes() == b"a.jpg"

    @pytest.mark.parametrize("stem", [False, True])
    @pytest.mark.parametrize("name", ["a.jpg.xmp", "a.xmp", "a.jpg.XMP", "a.XMP"])
    def test_one_that_is_there_is_used_under_either_name_and_its_rating_stands(self, tmp_path, stem, name):
        photo, sidecar = made(tmp_path, "a.jpg", name)
        sidecar.write_text(DARKTABLE)
        sidecar.chmod(0o640)
        assert write_stars([entry(photo)], THRESHOLDS, in_place_of_ending=stem)[:2] == (1, 0)
        assert sidecar.read_bytes() == with_rating(DARKTABLE.encode(), 4)
        assert sidecar.stat().st_mode & 0o777 == 0o640
        assert write_stars([entry(photo, 0.1)], THRESHOLDS, in_place_of_ending=stem)[:2] == (0, 1)
        assert stars_in(sidecar) == "4"
        again = write_stars([entry(photo, 0.1)], THRESHOLDS, in_place_of_ending=stem, overwrite=True)
        assert again[:2] == (1, 0)
        assert stars_in(sidecar) == "1"
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.jpg", name])

    def test_a_rating_in_the_photograph_stands(self, tmp_path):
        (photo,) = made(tmp_path, "a.jpg")
        assert write_stars([entry(photo, rating=3)], THRESHOLDS) == (0, 1, {})
        assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]
        assert write_stars([entry(photo, rating=3)], THRESHOLDS, overwrite=True) == (1, 0, {})

    def test_the_short_name_of_a_pair_is_the_raw_files(self, tmp_path):
        raw, jpeg = made(tmp_path, "a.cr2", "a.jpg")
        found = write_stars([entry(jpeg, 0.1), entry(raw, 0.9)], THRESHOLDS, in_place_of_ending=True)
        assert found[:2] == (1, 0)
        assert list(found.refused) == [str(jpeg)]
        assert "shares" in found.refused[str(jpeg)]
        assert stars_in(tmp_path / "a.xmp") == "5"
        assert write_stars([entry(jpeg, 0.1)], THRESHOLDS)[:2] == (1, 0)  # the long name is its own
        assert stars_in(tmp_path / "a.jpg.xmp") == "1"

    def test_whose_a_short_name_is_that_two_share_is_not_guessed(self, tmp_path):
        first, second = made(tmp_path, "a.png", "a.jpg")
        found = write_stars([entry(first), entry(second)], THRESHOLDS, in_place_of_ending=True)
        assert found[:2] == (0, 0)
        assert len(found.refused) == 2

    def test_what_is_no_xmp_stays_as_it_is_and_the_others_go_on(self, tmp_path):
        photo, sidecar, other = made(tmp_path, "a.jpg", "a.jpg.xmp", "b.jpg")
        found = write_stars([entry(photo), entry(other)], THRESHOLDS, overwrite=True)
        assert found[:2] == (1, 0)
        assert found.refused == {
            str(photo): "gets no stars: a.jpg.xmp is no XML (syntax error: line 1, column 0)"
        }
        assert sidecar.read_bytes() == b"a.jpg.xmp"

    def test_a_link_leads_to_the_sidecar_that_is_written(self, tmp_path):
        photo, target = made(tmp_path, "a.jpg", "kept elsewhere")
        target.write_text(DARKTABLE)
        (tmp_path / "a.jpg.xmp").symlink_to(target)
        write_stars([entry(photo)], THRESHOLDS)
        assert (tmp_path / "a.jpg.xmp").is_symlink()
        assert stars_in(target) == "4"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_may_not_be_written_is_named(self, tmp_path):
        (photo,) = made(tmp_path, "a.jpg")
        tmp_path.chmod(0o500)
        assert "Permission" in write_stars([entry(photo)], THRESHOLDS).refused[str(photo)]

    def test_a_folder_that_is_gone_is_named(self, tmp_path):
        photo = tmp_path / "gone" / "a.jpg"
        assert "No such file" in write_stars([entry(photo)], THRESHOLDS).refused[str(photo)]


class TestThresholds:
    @given(st.floats(0, 1), st.lists(st.floats(0, 1), min_size=4, max_size=4, unique=True).map(sorted))
    def test_each_that_is_reached_gives_a_star(self, score, thresholds):
        assert stars_of(score, thresholds) == 1 + sum(score >= threshold for threshold in thresholds)

    @pytest.mark.parametrize(
        "wrong", [(0.2, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1), (-0.1, 0.2, 0.3, 0.4), (0, 1, 2, 3)]
    )
    def test_others_than_four_rising_scores_are_refused(self, wrong):
        with pytest.raises(UsageError, match="four rising scores"):
            check_thresholds(wrong)
