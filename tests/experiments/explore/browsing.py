"""A page in headless Chromium: nothing may leave it, and nothing may be said on its console."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

THUMB = 20
"""Pixels of the slider's thumb: its middle travels over the width without one."""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The system's Chromium, driven by playwright."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail("no Chromium was found: `make test-explore` installs it, as root with apt")
    with sync_playwright() as made:
        browser = made.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Sight:
    """One page that is open.

    Attributes:
        tab: playwright's page.
        trouble: requests that left the page, errors, dialogs, and what was said on the console.
    """

    def __init__(self, browser: Any, path: Path, fragment: str = "", **context: Any) -> None:
        given = {"viewport": {"width": 1280, "height": 900}, "offline": True, **context}
        self.trouble: list[str] = []
        self._context = browser.new_context(**given)
        self.tab = self._context.new_page()
        self.tab.on("console", lambda said: self.trouble.append(f"console: {said.text}"))
        self.tab.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.tab.on("dialog", self._dialog)
        self.tab.on("request", self._request)
        self.tab.goto(path.as_uri() + fragment)
        self.settle()

    def _dialog(self, dialog: Any) -> None:
        self.trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Any) -> None:
        own = request.url.startswith("data:") or request.is_navigation_request()
        if not own:
            self.trouble.append(f"request: {request.url}")

    def close(self) -> None:
        self._context.close()
        assert self.trouble == [], self.trouble

    def settle(self) -> None:
        """Wait until pictures are drawn and the address says the state."""
        self.tab.wait_for_function("document.querySelector('.grid').dataset.kept !== undefined")
        self.tab.wait_for_timeout(200)

    # --- What it shows ---

    def kept(self, which: int = 0) -> list[int]:
        """The tokens shown as kept, ascending, of all grids of a panel."""
        grids = self.tab.locator(".panel").nth(which).locator(".grid")
        found: list[int] = []
        for number in range(grids.count()):
            text = grids.nth(number).get_attribute("data-kept") or ""
            found += map(int, text.split())
        return sorted(found)

    def count(self) -> int:
        """The budget as the page writes it."""
        return int(self.tab.inner_text("#count"))

    def said(self) -> str:
        return self.tab.inner_text("#said")

    def turns(self, which: int = 0) -> list[tuple[int, int]]:
        """The bars below the slider, as (smaller, larger) budget."""
        bars = self.tab.locator(".strip").nth(which).locator(".turn")
        read = (bars.nth(i) for i in range(bars.count()))
        return [
            (int(bar.get_attribute("data-low")), int(bar.get_attribute("data-high")))
            for bar in read
        ]

    # --- What one does with it ---

    def place(self, share: float) -> tuple[float, float]:
        """Where the slider's thumb is at a share of its way, in pixels of the window."""
        box = self.tab.locator("#budget").bounding_box()
        x = box["x"] + THUMB / 2 + share * (box["width"] - THUMB)
        return x, box["y"] + box["height"] / 2

    def drag(self, share: float) -> None:
        """Drag the thumb from where it is."""
        slider = self.tab.locator("#budget")
        slider.scroll_into_view_if_needed()
        least, most, value = (
            float(slider.evaluate(f"own => own.{name}")) for name in ("min", "max", "value")
        )
        self.tab.mouse.move(*self.place((value - least) / (most - least)))
        self.tab.mouse.down()
        self.tab.mouse.move(*self.place(share), steps=4)
        self.tab.mouse.up()

    def press(self, *keys: str) -> None:
        """Press keys on the slider."""
        self.tab.focus("#budget")
        for key in keys:
            self.tab.keyboard.press(key)

    def faults(self) -> list[str]:
        """What axe-core finds, with the elements."""
        import axe_playwright_python

        folder = Path(axe_playwright_python.__file__).parent
        self.tab.evaluate((folder / "axe.min.js").read_text(encoding="utf-8"))
        found = self.tab.evaluate("async () => (await axe.run()).violations")
        return [
            f"{one['impact']} {one['id']}: {node['html'][:160]} {node['failureSummary']}"
            for one in found
            for node in one["nodes"]
        ]
