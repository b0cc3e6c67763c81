"""A real Chromium without a screen, driven by Playwright, for tests of what people see."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from parts import is_missing

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
"""It runs as root in a container, and asks nobody but the server that is tested."""


def missing() -> str | None:
    """What is not there, as the reason of a skip; None where a browser can be launched."""
    if find_spec("playwright") is None:
        return "no Playwright: pip install playwright"
    if _chromium() is None:
        return "no Chromium: apt-get install chromium"
    return None


def need() -> None:
    """Skips the test where there is no browser; in CI, where there has to be one, it fails."""
    if reason := missing():
        is_missing(reason)


@contextmanager
def launched() -> Iterator["Browser"]:
    """The browser, which ends with the block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def _chromium() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)
