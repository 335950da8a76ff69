"""Directory listings as Apache's mod_autoindex writes them.

https://httpd.apache.org/docs/2.4/mod/mod_autoindex.html
"""

from urllib.parse import unquote, urljoin, urlsplit

from em_pipeline.domain.errors import SourceUnavailable


def file_names(page: str, url: str) -> list[str]:
    """Names of the files in the folder that the listing `page` at `url` (ending in /) shows, sorted.

    Sort links, the parent and sub-folders are left out, and so is every link that leads out of the folder.
    Raises `SourceUnavailable` for a page that is no listing, or only the beginning of one: a portal in
    trouble sends such in its place, and half a listing must not pass for a folder with fewer files.
    """
    return sorted(name for name in _below(page, url) if plain(name))


def folder_names(page: str, url: str) -> list[str]:
    """Names of the sub-folders in the listing, without their `/`, sorted. Raises like `file_names`."""
    inside = (name for name in _below(page, url) if name.endswith("/"))
    return sorted(name[:-1] for name in inside if plain(name[:-1]))


def _below(page: str, url: str) -> set[str]:
    """What the listing's links lead to, as paths below the folder at `url`."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(page, "html.parser")
    heading = soup.find(["title", "h1"])
    listing = heading is not None and "index of" in heading.get_text().lower()
    if not listing or "</html>" not in page.lower():
        raise SourceUnavailable(
            f"List the files at {url}",
            f"the page is no {'whole ' * listing}directory listing; it begins {page[:80]!r}",
            "Nothing is known about the data; open the URL in a browser, and try again later",
        )
    folder = urlsplit(url)
    names = set()
    for anchor in soup.find_all("a", href=True):
        target = urlsplit(urljoin(url, str(anchor["href"])))
        if (target.scheme, target.netloc) != (folder.scheme, folder.netloc) or target.query:
            continue
        below = unquote(target.path).removeprefix(unquote(folder.path))
        if below != unquote(target.path):
            names.add(below)
    return names


def plain(name: str) -> bool:
    """Whether `name` is one file's name: no folder, no way up, nothing a file system would read otherwise."""
    return (
        bool(name) and name not in (".", "..") and not any(c in name for c in "/\\\0") and name.isprintable()
    )
