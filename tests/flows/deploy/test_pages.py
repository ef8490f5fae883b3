"""What a server says page by page is heard to the end."""

import pytest

from flows.deploy.pages import PAGE, pages


@pytest.mark.parametrize("number", [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 5 * PAGE + 3])
def test_all_pages(number: int) -> None:
    there = list(range(number))
    assert pages(lambda offset: there[offset : offset + PAGE]) == there
