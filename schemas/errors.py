"""Errors of this package: the base of all of Photon's errors, and the federation file's."""


class PhotonError(Exception):
    """Base of all errors that Photon raises on purpose. The text states what is wrong, where, and what to do."""


class FederationError(PhotonError, ValueError):
    """The federation file, or something that it refers to, is wrong. The text has one line for each problem."""
