"""Directory listings, well and badly meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_pipeline.domain.errors import SourceUnavailable
from em_pipeline.domain.files import RemoteFile
from em_pipeline.sources.autoindex import file_names, folder_names

URL = "https://ftp.example.org/archive/11759/data/"


def listing(*hrefs: str) -> str:
    rows = "".join(f'<tr><td><a href="{href}">x</a></td></tr>' for href in hrefs)
    return f"<html><head><title>Index of /archive</title></head><table>{rows}</table></html>"


@pytest.mark.parametrize(
    ("href", "name"),
    [
        ("slice_0000.dm3", "slice_0000.dm3"),
        ("section%20001.tif", "section 001.tif"),
        ("a&amp;b.tif", "a&b.tif"),
        ("a%2Bb+c.tif", "a+b+c.tif"),
        ("./slice.dm3", "slice.dm3"),
        ("/archive/11759/data/slice.dm3", "slice.dm3"),
        ("https://ftp.example.org/archive/11759/data/slice.dm3", "slice.dm3"),
        ("µm%23.tif", "µm#.tif"),
        ("?C=N;O=D", None),
        ("?C=M&amp;O=A", None),
        ("/archive/11759/", None),
        ("../", None),
        ("trakem2.example/", None),
        ("../other/slice.dm3", None),
        ("..%2F..%2Fetc%2Fpasswd", None),
        ("%2e%2e", None),
        ("a%5Cb.dm3", None),
        ("a%00.dm3", None),
        ("//evil.example.org/archive/11759/data/slice.dm3", None),
        ("ftp://ftp.example.org/archive/11759/data/slice.dm3", None),
        ("mailto:a@example.org", None),
    ],
)
def test_link(href: str, name: str | None) -> None:
    assert file_names(listing(href), URL) == ([name] if name else [])


@given(st.text(max_size=30))
def test_no_link_leads_out_of_the_folder(href: str) -> None:
    for name in file_names(listing(href.replace('"', "")), URL):
        assert RemoteFile(url=URL, path=name).path == name
        assert "/" not in name


@pytest.mark.parametrize("page", ["", "<html><title>Maintenance</title></html>", '<a href="x.dm3">x</a>'])
def test_another_page_is_an_outage_not_an_empty_folder(page: str) -> None:
    with pytest.raises(SourceUnavailable, match="no directory listing"):
        file_names(page, URL)


def test_an_empty_folder_is_empty() -> None:
    assert file_names(listing("?C=N;O=D", "/archive/11759/"), URL) == []


def test_sub_folders_are_told_from_files() -> None:
    page = listing("Raw-files/", "a%20b/", "slice.dm3", "/archive/11759/", "../", "deep/er/", "%2e%2e/")
    assert folder_names(page, URL) == ["Raw-files", "a b"]
    assert file_names(page, URL) == ["slice.dm3"]


def test_half_a_listing_is_an_outage_not_a_smaller_folder() -> None:
    whole = listing("slice_0000.dm3", "slice_0001.dm3", "slice_0002.dm3")
    with pytest.raises(SourceUnavailable, match="no whole directory listing"):
        file_names(whole[: len(whole) * 2 // 3], URL)
