"""Pages as a browser shows them: Playwright drives a Chromium that the system has; none is ever downloaded.

Needs the extra `[browser]` and a Chromium on the PATH (Debian: `apt install chromium`).
"""

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec

from em_pipeline.domain.errors import SourceUnavailable

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_S = 30.0


class NeverShown(SourceUnavailable):
    """A page that loads and does not show what is looked for: it has changed, or what fills it is down."""


@dataclass(frozen=True)
class Browser:
    """A Chromium by its executable. `timeout_s` bounds loading a page, `patience_s` awaiting its content."""

    executable: str
    timeout_s: float = TIMEOUT_S
    patience_s: float = TIMEOUT_S

    def render(self, url: str, content: str) -> str:
        """The HTML of the page at `url` once the element that the CSS selector `content` names is there.

        Raises `NeverShown` where it does not come, `SourceUnavailable` where the page does not load.
        """
        from playwright.sync_api import Error, TimeoutError, sync_playwright

        # Chromium's sandbox cannot start as root, which is who runs most containers.
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=self.executable, args=flags)
                try:
                    page = browser.new_page()
                    page.goto(url, timeout=1000 * self.timeout_s)
                    try:
                        page.wait_for_selector(content, state="attached", timeout=1000 * self.patience_s)
                    except TimeoutError as error:
                        raise NeverShown(
                            f"Read {url} in {self.executable}",
                            f"the page loads, and shows no {content!r} within {self.patience_s:g} s",
                            "Open the URL in a browser: it has changed, or is in trouble",
                        ) from error
                    html: str = page.content()
                    return html
                finally:
                    browser.close()
        except Error as error:
            raise SourceUnavailable(
                f"Read {url} in {self.executable}",
                str(error).splitlines()[0],
                "Nothing is known about the data; open the URL in a browser, and try again later",
            ) from error


def find_browser() -> Browser | None:
    """A browser to read pages with, None where the extra `[browser]` or a Chromium is not installed."""
    if find_spec("playwright") is None:
        return None
    found = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    return Browser(found) if found else None
