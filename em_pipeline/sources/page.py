"""Portals' pages for people: as the server sends them, or as a browser shows them.

A page that needs JavaScript is read in a Chromium of the system where there is one (the extra `[browser]`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from em_pipeline.domain.errors import InputRefused, NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.sources import rendered_page
from em_pipeline.storage.http import PortalClient

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

SENT, RENDERED, UNREADABLE = "as sent", "rendered", "needs a browser"
GONE, FORBIDDEN, CHANGED = "it is not there any more", "it is forbidden", "it no longer shows its content"
# Characters of a page in a message.
SHOWN = 80


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


@dataclass(frozen=True)
class Reading:
    """A page as far as it can be read. `how` is its `Page.how`, or says why there is no `page`.

    `unavailable` is for the `PortalRecord`, where a later reading may bring what this one did not.
    """

    page: Page | None
    how: str
    unavailable: dict[str, str] = field(default_factory=dict)


def read_page(
    client: PortalClient,
    url: str,
    *,
    content: str,
    find_browser: Callable[[], rendered_page.Browser | None] = rendered_page.find_browser,
) -> Reading:
    """The page at `url` where it is what its source knows; `content` is as in `fetch_page`.

    One that has moved, is forbidden, has another design or needs a browser is no page, and `how` says so.
    Raises `SourceUnavailable` for an outage.
    """
    try:
        page = fetch_page(client, url, content=content, find_browser=find_browser)
    except NotFound:
        return Reading(None, GONE)
    except InputRefused:
        return Reading(None, FORBIDDEN)
    except (RecordInvalid, rendered_page.NeverShown) as error:
        # A page in maintenance cannot be told from one with a new design.
        return Reading(None, CHANGED, {"page": str(error)})
    return Reading(page if page.readable else None, page.how)


def fetch_page(
    client: PortalClient,
    url: str,
    *,
    content: str,
    find_browser: Callable[[], rendered_page.Browser | None] = rendered_page.find_browser,
) -> Page:
    """The page at `url`. The CSS selector `content` names an element that it has once it is complete.

    Raises like `PortalClient.get_text`, `SourceUnavailable` for half a page, `RecordInvalid` for a whole one
    that has neither that element nor a script that could still bring it, and like `Browser.render`.
    """
    html = client.get_text(url)
    soup = parsed(html)
    if "</html>" not in html.lower():
        raise SourceUnavailable(
            f"Read {url}",
            f"the portal answered with only the beginning of a page; it begins {html[:SHOWN]!r}",
            "Nothing is known about the data; open the URL in a browser, and try again later",
        )
    if soup.select_one(content) is not None:
        return Page(url, html, SENT)
    if soup.find("script") is None:
        raise RecordInvalid(
            f"Read {url}",
            f"the portal answered with a page without {content!r}; it begins {html[:SHOWN]!r}",
            "Open the URL in a browser: it has changed, or is in maintenance",
        )
    browser = find_browser()
    if browser is None:
        return Page(url, html, UNREADABLE)
    return Page(url, browser.render(url, content), RENDERED)


def parsed(html: str) -> "BeautifulSoup":
    """The page as a tree."""
    from bs4 import BeautifulSoup

    return BeautifulSoup(html, "html.parser")
