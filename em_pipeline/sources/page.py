"""Portals' pages for people: as the server sends them, or as a browser shows them.

A page that needs JavaScript is read in a Chromium of the system where there is one (the extra `[browser]`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from em_pipeline.domain.errors import SourceUnavailable
from em_pipeline.sources import rendered_page
from em_pipeline.storage.http import PortalClient

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

SENT, RENDERED, UNREADABLE = "as sent", "rendered", "needs a browser"


@dataclass(frozen=True)
class Page:
    """A page's address, its HTML, and how it was read: `SENT`, `RENDERED` or `UNREADABLE`.

    An unreadable page is one that would show its content only in a browser, and there is none here.
    """

    url: str
    html: str
    how: str

    @property
    def readable(self) -> bool:
        return self.how != UNREADABLE


def fetch_page(
    client: PortalClient,
    url: str,
    *,
    content: str,
    find_browser: Callable[[], rendered_page.Browser | None] = rendered_page.find_browser,
) -> Page:
    """The page at `url`. The CSS selector `content` names an element that it has once it is complete.

    Raises like `PortalClient.get_text`, and `SourceUnavailable` for half a page and for one that has neither
    that element nor a script that could still bring it: a maintenance page, most likely.
    """
    html = client.get_text(url)
    soup = parsed(html)
    if "</html>" not in html.lower():
        raise _no_page(url, html, "only the beginning of a page")
    if soup.select_one(content) is not None:
        return Page(url, html, SENT)
    if soup.find("script") is None:
        raise _no_page(url, html, f"a page without {content!r}")
    browser = find_browser()
    if browser is None:
        return Page(url, html, UNREADABLE)
    return Page(url, browser.render(url, content), RENDERED)


def parsed(html: str) -> "BeautifulSoup":
    """The page as a tree."""
    from bs4 import BeautifulSoup

    return BeautifulSoup(html, "html.parser")


def _no_page(url: str, html: str, what: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"Read {url}",
        f"the portal answered with {what}; it begins {html[:80]!r}",
        "Nothing is known about the data; open the URL in a browser, and try again later",
    )
