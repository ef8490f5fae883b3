"""Where the tensors of a model are: in the files of a committed round, or in verified files on this machine."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from photon_core.run.run import Run, model_sha256
from photon_core.tensors.local import LocalTensors
from photon_core.tensors.reader import TensorReader
from schemas.manifests import FileEntry, RoundManifest, TensorEntry


class Tensors(Protocol):
    """The float32 tensors of a model, read one at a time."""

    @property
    def tensors(self) -> Mapping[str, TensorEntry]: ...

    def chunks(self, name: str, elements: int) -> Iterator[NDArray[Any]]:
        """A tensor's elements, flat, in arrays of at most `elements`; each array is valid until the next."""
        ...

    def array(self, name: str) -> NDArray[Any]:
        """A whole tensor."""
        ...


@dataclass(frozen=True)
class Committed:
    """The model of a committed round, in the run's store. The end of `open` verifies its files."""

    run: Run
    manifest: RoundManifest

    @property
    def entries(self) -> Sequence[FileEntry]:
        return self.manifest.model

    @property
    def sha256(self) -> str:
        return self.manifest.model_sha256

    @contextmanager
    def open(self) -> Iterator[Tensors]:
        with TensorReader(self.run.store, self.run.files_dir(self.manifest.round), self.entries) as reader:
            yield reader
            reader.verify()


@dataclass(frozen=True)
class Local:
    """A model that no round has committed, in files on this machine.

    Args:
        files: paths of verified files.
        entries: their manifest entries, in the same order.
    """

    files: Sequence[Path]
    entries: Sequence[FileEntry]

    @property
    def sha256(self) -> str:
        return model_sha256(self.entries)

    @contextmanager
    def open(self) -> Iterator[Tensors]:
        yield LocalTensors.of(self.files, self.entries)


Source = Committed | Local


def paths_of(source: Source, folder: Path, connections: int) -> list[Path]:
    """A model's files on this machine, in the order of its entries.

    Args:
        source: the model.
        folder: folder for copies of files that are in a remote store.
        connections: number of concurrent downloads.

    Raises:
        CorruptFile: a file does not match its entry.
    """
    if isinstance(source, Local):
        return list(source.files)
    place = source.run.files_dir(source.manifest.round)
    return source.run.store.fetch_all(source.entries, place, folder, connections)
