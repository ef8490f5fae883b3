"""Errors of the storey below: the base of all of Photon's errors, and the federation file's."""


class PhotonError(Exception):
    """Base of all errors that Photon raises on purpose. Its text says what, where and what to do."""


class FederationError(PhotonError, ValueError):
    """The federation file, or something that it points to, is wrong. One line of text for each problem."""
