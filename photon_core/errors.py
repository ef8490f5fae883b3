"""Every failure has a name: what users and operators see when something is wrong."""

from photon_core.formatting import printable
from schemas.errors import FederationError, PhotonError

__all__ = [
    "Cancelled",
    "ChildFailed",
    "CorruptFile",
    "DataError",
    "DeadlinePassed",
    "FederationError",
    "Killed",
    "ModelDiverged",
    "NotFinite",
    "PhotonError",
    "QuorumMissed",
    "StoreConflict",
    "StoreRefused",
    "StoreUnavailable",
    "Unreadable",
    "UpdateRejected",
]


class DataError(PhotonError):
    """A site's text or shards cannot be used: unreadable, corrupt, or refused by an expectation."""


class StoreConflict(PhotonError):
    """Another writer committed first. The committed content stands; ours is litter."""


class StoreUnavailable(PhotonError):
    """The store's server was away, or too busy, for longer than a step waits. Trying later may do."""


class StoreRefused(PhotonError):
    """The store's server does not let these credentials do it, or there are none."""


class CorruptFile(PhotonError):
    """A file's bytes do not match the hash or size in the manifest that covers it, or are no manifest."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, 2000))


class Unreadable(CorruptFile):
    """The file system does not let its bytes be read: permissions, or something else stands at its place."""


class UpdateRejected(PhotonError):
    """A site's update may not be aggregated (NaN, wrong base, wrong shape, zero tokens).

    Args:
        site: name of the site whose update is rejected.
        reason: one sentence for the manifest, the state message and the report.
    """

    def __init__(self, site: str, reason: str) -> None:
        reason = printable(reason)
        super().__init__(f"update of site '{site}' rejected: {reason}")
        self.site = site
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.site, self.reason)


class NotFinite(PhotonError):
    """The mean of all updates is NaN or infinite, and the pass was not to look at single ones."""


class QuorumMissed(PhotonError):
    """Fewer sites committed an update than the quorum asks for."""


class ChildFailed(PhotonError):
    """A child process (training, validation, evaluation) ended with an error or was killed."""


class Cancelled(ChildFailed):
    """A child process was ended because somebody asked for it."""


class Killed(ChildFailed):
    """A child process was ended from outside: kill -9, a kernel short of memory, the end of its fork server."""


class DeadlinePassed(ChildFailed):
    """A child process was ended because its time was up."""


class ModelDiverged(PhotonError):
    """A round's new model has no finite validation loss, so that the next round's training could not begin."""


class StepOverflow(PhotonError):
    """The server's step makes the model infinite, though the updates are finite."""
