"""Text for people, in one form everywhere: counts, bytes, seconds, and untrusted text."""

NOTHING = "-"


def count(number: float) -> str:
    """1.2 M."""
    return _scaled(number, ("", " k", " M", " B", " T"), " quadrillion")


def amount(size: float) -> str:
    """Bytes: 4.4 MB."""
    return _scaled(size, (" B", " kB", " MB", " GB", " TB"), " PB")


def duration(seconds: float | None) -> str:
    """340 ms, 4.2 s, 42 s, 3 min 20 s, 16 min, 5 h 7 min, 6.2 days; a dash if unknown."""
    if seconds is None:
        return NOTHING
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if 0 < seconds < 9.95 else f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 100 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole / 86400:.1f} days"


def _scaled(number: float, units: tuple[str, ...], largest: str) -> str:
    """Three digits and the unit that leaves less than a thousand of them."""
    for unit in units:
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g}{largest}"


def printable(text: str, limit: int = 1000, lines: bool = False) -> str:
    """A text that may quote untrusted input, fit for logs, terminals and manifests.

    Args:
        lines: flag: keep line breaks.
    """
    return "".join(c if c.isprintable() or (lines and c == "\n") else "?" for c in text[:limit])


def unmarked(text: str) -> str:
    """`printable`, for what renders HTML, Markdown or a chat's markup without escaping."""
    return printable(text).replace("<", "‹").replace(">", "›").replace("](", "] (")
