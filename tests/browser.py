"""A headless Chromium for the tests of what people see: the system's own, which `make browser` installs."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture
def browser() -> "Iterator[Browser]":
    """Playwright's handle of a running browser; skips where there is none.

    Of one test only: as long as it is open its thread has a running event loop, which Prefect would take for its
    own. A test that needs both gives Prefect's part to another thread.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium: make browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=[*OPTIONS])
        yield chromium
        chromium.close()
