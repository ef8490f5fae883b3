"""README's pictures, from the demo's folder: the report's first screen, and a round's graph in the Prefect UI.

make pictures    # photon demo, then: python docs/pictures/make.py photon-demo
"""

import json
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photon_cli.prefect.embedded import EmbeddedServer, prefect_home
from photon_core.evidence.record import read_record
from photon_core.report.page import render
from photon_core.run.run import run_of
from schemas.reading.load import load_federation

if TYPE_CHECKING:
    from playwright.sync_api import Page

HERE = Path(__file__).parent
NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
           "--disable-sync", "--no-first-run")  # fmt: skip
LARGEST = 200_000  # bytes of a picture


def main(folder: Path) -> None:
    """Write report.png and round.png beside this file."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        sys.exit("Chromium is not installed; write: make browser")
    file = folder / "federation.yaml"
    federation = load_federation(file)
    record = read_record(run_of(federation), federation.rounds.count)
    with EmbeddedServer(prefect_home(file)) as server, sync_playwright() as playwright:
        server.wait()
        chromium = playwright.chromium.launch(executable_path=program, args=[*OPTIONS])
        with tempfile.TemporaryDirectory() as temporary:
            page = Path(temporary) / "report.html"
            page.write_text(render(record), "utf-8")
            picture(chromium.new_page(viewport={"width": 1240, "height": 1290}), "report", page.as_uri(), _still)
        run = _last_round(server.url)
        picture(
            chromium.new_page(viewport={"width": 1100, "height": 560}), "round",
            f"{server.url}/runs/flow-run/{run}", _graph,
        )  # fmt: skip
        chromium.close()


def picture(page: "Page", name: str, url: str, ready: "Callable[[Page], dict[str, Any]]") -> None:
    """Show a page and save its screenshot as a small PNG."""
    from PIL import Image

    page.goto(url, timeout=120_000)
    target = HERE / f"{name}.png"
    page.screenshot(path=target, **ready(page))
    image = Image.open(target).convert("RGB")
    common = sorted(image.getcolors(1 << 24), reverse=True)[:256]  # kept as they are
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for _, colour in common for value in colour])
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(target, optimize=True)
    size = target.stat().st_size
    if size > LARGEST:
        sys.exit(f"{target} has {size} bytes, but the limit of a picture in the repository is {LARGEST}")
    print(f"{target}: {size // 1000} kB")


def _still(_page: "Page") -> dict[str, Any]:
    return {}


def _graph(page: "Page") -> dict[str, Any]:
    """Show only the graph, on white, after its layout is finished and it fills the page."""
    page.evaluate("localStorage.setItem('color-scheme', JSON.stringify('light'))")
    page.reload()
    page.locator("canvas").first.wait_for(timeout=120_000)
    for button in ("Toggle fullscreen (f)", "Recenter graph (c)"):
        page.wait_for_timeout(4_000)
        page.get_by_title(button).click()
    page.wait_for_timeout(4_000)
    page.add_style_tag(content=".run-graph__actions { display: none }")
    return {}


def _last_round(url: str) -> str:
    body = {"flows": {"name": {"any_": ["federated-round"]}}, "sort": "START_TIME_DESC", "limit": 1}
    request = urllib.request.Request(
        f"{url}/api/flow_runs/filter", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)[0]["id"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
