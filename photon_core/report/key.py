"""A round's key picture: the curve so far and who did what when, as one SVG file."""

from collections.abc import Sequence

from photon_core.report.page import Section
from photon_core.report.style import Picture

SECTIONS = ("learning", "time")  # of the page: the first figure of each


def picture(sections: Sequence[Section]) -> str:
    """Two figures of the page beside each other, as a file that stands alone; empty before the first round."""
    found = [section.pictures[0] for section in sections if section.id in SECTIONS and section.pictures]
    shown: list[Picture] = [figure for figure in found if figure is not None]
    if not shown:
        return ""
    width, height, parts = 0.0, 0.0, []
    for figure in shown:
        start = figure.svg.index('viewBox="') + len('viewBox="')
        _, _, w, h = map(float, figure.svg[start : figure.svg.index('"', start)].split())
        place = f'<svg x="{width:.0f}" y="24" width="{w:.0f}" height="{h:.0f}" '
        title = f'<text x="{width + 6:.0f}" y="16" font-size="14" font-weight="bold">{_text(figure.title)}</text>'
        parts.append(title + place + figure.svg.removeprefix("<svg "))
        width, height = width + w + 20, max(height, h + 24)
    body = "\n".join(parts).replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    box = f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>'
    family = 'font-family="system-ui, sans-serif" fill="#1f2933"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {family}>{box}{body}</svg>'


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
