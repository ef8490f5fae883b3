"""A file of a store that is being written: whole on `close`, never seen on `discard` or an error inside `with`."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Writer(ABC):
    """A binary file, written from front to back."""

    @abstractmethod
    def write(self, data: bytes | bytearray | memoryview) -> int: ...

    @abstractmethod
    def close(self) -> None:
        """Give the file its name.

        Raises:
            StoreConflict: the name is taken.
        """

    @abstractmethod
    def discard(self) -> None:
        """Drop what was written; after `close` there is nothing to drop."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()
