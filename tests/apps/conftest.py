"""Fixtures of the browser tests: Chromium, a server, and a visitor that notices what should not happen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.apps.page_server import KEY, PageServer, serving

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 30_000
"""Milliseconds that an expectation may take: CI has two busy cores, and what holds is seen at once."""


@dataclass
class Visit:
    """A tab of the browser on the page.

    Attributes:
        page: Playwright's page.
        server: What answers it.
        screenshots: Where pictures are kept.
        errors: What the console and the page said that nobody expected.
        addresses: Of every request.
        refusals: Statuses that the test makes the server answer with; Chromium logs each as an error.
    """

    page: Page
    server: PageServer
    screenshots: Path
    errors: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    refusals: set[int] = field(default_factory=set)

    def open(self, fragment: str = f"#key={KEY}") -> Page:
        self.page.goto(self.server.url + fragment)
        return self.page

    def keep(self, name: str) -> None:
        """Keeps a picture of the window."""
        self.page.screenshot(path=self.screenshots / f"{name}.png")

    def check(self) -> None:
        """No error that was not expected, and no request to anybody else."""
        expected = tuple(
            f"Failed to load resource: the server responded with a status of {status}"
            for status in self.refusals
        )
        assert [error for error in self.errors if not error.startswith(expected or ("\0",))] == []
        own = (self.server.url, "data:", "blob:")
        assert [address for address in self.addresses if not address.startswith(own)] == []


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A headless Chromium: Debian's, or the one that COUNTERRAY_CHROMIUM names.

    Of a module, not of the session: as long as the driver is there its event loop runs in this thread, and
    tests of other modules could run none.
    """
    program = os.environ.get("COUNTERRAY_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one in COUNTERRAY_CHROMIUM")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def page_server() -> Iterator[PageServer]:
    """One stand-in for all tests; `visiting` empties it."""
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures are kept: COUNTERRAY_SCREENSHOTS, or a temporary folder."""
    folder = os.environ.get("COUNTERRAY_SCREENSHOTS")
    path = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def visiting(chromium: Browser, page_server: PageServer, screenshots: Path) -> Iterator[Callable[..., Visit]]:
    """Makes visits; each is a browser of its own, and is checked when the test ends."""
    page_server.reset()
    contexts, visits = [], []

    def visit(*, width: int = 1440, height: int = 900, **settings: object) -> Visit:
        context = chromium.new_context(viewport={"width": width, "height": height}, **settings)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        made = Visit(page, page_server, screenshots)
        page.on("console", lambda said: said.type == "error" and made.errors.append(said.text))
        page.on("pageerror", lambda error: made.errors.append(str(error)))
        page.on("request", lambda request: made.addresses.append(request.url))
        contexts.append(context)
        visits.append(made)
        return made

    yield visit
    for context in contexts:
        context.close()
    for made in visits:
        made.check()
