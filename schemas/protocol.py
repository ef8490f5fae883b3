"""Protocol number of coordinator and sites: they work together only if their numbers are equal."""

PROTOCOL = 1
"""Raise it with every change that two versions would interpret differently: parameters of the sites' flows,
contents of the store, settings that count (`work`), encoding of an update. Deployments (as a tag) and updates
contain it. `photon join`, dispatch and the deployed flow runs compare it before any work. 0 means a version
without a number."""

PROTOCOL_TAG = "protocol:"


def other_protocol(tag: str, what: str, here: str) -> str:
    """Why a deployment does not fit this Photon, and which side must upgrade; empty if it fits.

    Args:
        tag: protocol number in the deployment's tag; empty if it has none.
        what: name of the deployment, for the message.
        here: name of this process, for the message: the coordinator, or a site.
    """
    theirs = int(tag) if tag.isdecimal() and len(tag) < 10 else 0
    if theirs == PROTOCOL:
        return ""
    numbers = f"{what} has protocol {theirs}, the Photon of {here} {PROTOCOL}"
    if theirs > PROTOCOL:
        return f"{numbers}: upgrade Photon at {here}"
    return f"{numbers}: upgrade Photon where `photon deploy` is run, then write: photon deploy FILE"
