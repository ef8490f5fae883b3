"""Retries are reported to every caller that asks."""

from photon_core.store.retry import outages, retry


def fail_twice() -> list[str]:
    calls: list[str] = []

    def call() -> None:
        calls.append("call")
        if len(calls) < 3:
            raise ConnectionResetError("gone")

    retry(call, "putting a file")
    return calls


def test_outages_are_told_and_only_within_the_block() -> None:
    fail_twice()
    with outages() as found:
        assert fail_twice() == ["call"] * 3
        retry(lambda: None, "putting another")
    fail_twice()
    assert [(outage.tries, outage.cause) for outage in found] == [(2, "ConnectionResetError")]
