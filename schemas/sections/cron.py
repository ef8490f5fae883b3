"""Cron lines: five fields, checked here so that an error has the file's line and does not come from a server."""

import re

FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of the month", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
NICKNAMES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
PART = re.compile(r"(?:(\*)|(\w+)(?:-(\w+))?)(?:/(\d+))?")


def cron_problem(line: str) -> str | None:
    """The problem with a cron line, and what to write instead; None without a problem."""
    if line.startswith("@"):
        return None if line in NICKNAMES else f"is not one of {', '.join(NICKNAMES)}; write one of them"
    fields = line.split()
    if len(fields) != len(FIELDS):
        return (
            f"has {len(fields)} fields, but a cron line has five: minute, hour, day, month, weekday; "
            "write for example '0 * * * *' for every hour"
        )
    for text, (name, low, high) in zip(fields, FIELDS, strict=True):
        if not all(_fits(part, low, high) for part in text.lower().split(",")):
            return f"has '{text}' for the {name}; write *, a number from {low} to {high}, 1-5, 1,3 or */2"
    return None


def _fits(part: str, low: int, high: int) -> bool:
    match = PART.fullmatch(part)
    if not match:
        return False
    star, first, last, step = match.groups()
    if step is not None and (not 1 <= int(step) <= high or not (star or last)):
        return False
    if star:
        return True
    begin, end = _number(first, high), _number(last or first, high)
    return begin is not None and end is not None and low <= begin <= end <= high


def _number(text: str, high: int) -> int | None:
    """The number of a field's text, which may be the name of a month or weekday."""
    if text.isascii() and text.isdigit():
        return int(text)
    if high == 12 and text in MONTHS:
        return MONTHS.index(text) + 1
    return DAYS.index(text) if high == 7 and text in DAYS else None
