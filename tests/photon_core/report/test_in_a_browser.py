"""The page as a browser shows it, at a desk and on a phone; the screenshots stay in the test's folder."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from photon_core.evidence.record import Record
from photon_core.report.page import render

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BOXES = """() => [...document.querySelectorAll('figure')].map(f => {
    const box = f.querySelector('svg').getBoundingClientRect();
    const card = f.getBoundingClientRect();
    const texts = [...f.querySelectorAll('svg text')].map(t => t.getBoundingClientRect()).filter(t => t.width > 0);
    const cut = texts.filter(t => t.left < card.left - 1 || t.right > card.right + 1).length;
    const shapes = [...f.querySelectorAll('svg path')].filter(p => p.getBBox().width + p.getBBox().height).length;
    return {id: f.id, width: box.width, height: box.height, texts: texts.length, cut: cut, shapes: shapes};
})"""
TOO_WIDE = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
OPEN = "() => document.querySelectorAll('details').forEach(fold => { fold.open = true })"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_every_figure_is_drawn_and_nothing_is_wider_than_the_screen(
    make_record: Callable[..., Record], browser: "Browser", tmp_path: Path, width: int
):
    file = tmp_path / "report.html"
    file.write_text(render(make_record(6, 4)), "utf-8")
    page = browser.new_page(viewport={"width": width, "height": 844})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.screenshot(path=tmp_path / f"report-{width}.png", full_page=True)
    assert page.evaluate(TOO_WIDE) <= 0
    page.evaluate(OPEN)
    page.screenshot(path=tmp_path / f"report-{width}-open.png", full_page=True)
    figures = page.evaluate(BOXES)
    assert len(figures) == 9 + 5, "nine figures, and the timelines of the five rounds before"
    for figure in figures:
        assert figure["width"] > 300 and figure["height"] > 100, figure
        assert figure["texts"] >= 5 and figure["shapes"] >= 3 and figure["cut"] == 0, figure
    assert page.evaluate(TOO_WIDE) <= 0
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
