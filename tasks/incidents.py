"""What went wrong on the way to a result that came all the same, as this process saw it: for the manifests."""

import threading

from prefect.runtime import task_run

Key = tuple[str, int, str]  # run, round, site


class Incidents:
    """Sentences by run, round and site, and by step: a step that is done again says anew. Safe to use from several
    threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[Key, dict[str, list[str]]] = {}

    def put(self, key: Key, step: str, sentences: list[str]) -> None:
        with self._lock:
            self._told.setdefault(key, {})[step] = list(sentences)

    def pop(self, key: Key) -> list[str]:
        """All of a site, which are forgotten here."""
        with self._lock:
            return [sentence for told in self._told.pop(key, {}).values() for sentence in told]

    def take(self, run: str, t: int) -> dict[str, list[str]]:
        """Every site's of a round, which are forgotten here."""
        with self._lock:
            keys = [key for key in self._told if key[:2] == (run, t)]
        return {key[2]: self.pop(key) for key in keys}


INCIDENTS = Incidents()


def starts(what: str) -> list[str]:
    """A sentence about the task that this is called in, if it had to be started more than once."""
    count = task_run.run_count or 1
    return [f"{what} was started {count} times"] if count > 1 else []
