"""The number of the language that coordinator and sites speak: they work together only if theirs are equal."""

PROTOCOL = 1
"""Raise it with every change that two versions would not understand alike: parameters of the sites' flows, what
stands in the store, which settings count (`work`), how an update is encoded. It stands in deployments (as a tag)
and in updates; `photon join`, dispatch and the deployed flow runs compare it before any work. 0 is what spoke
before there was a number."""

PROTOCOL_TAG = "protocol:"


def other_protocol(tag: str, what: str, here: str) -> str:
    """Why a deployment does not go with this Photon, and who must upgrade; empty if it does.

    Args:
        tag: what the deployment's tag says; empty if it has none.
        what: the deployment, for the message.
        here: whose Photon this is.
    """
    theirs = int(tag) if tag.isdecimal() and len(tag) < 10 else 0
    if theirs == PROTOCOL:
        return ""
    numbers = f"{what} has protocol {theirs}, the Photon of {here} {PROTOCOL}"
    if theirs > PROTOCOL:
        return f"{numbers}: upgrade Photon at {here}"
    return f"{numbers}: upgrade Photon where `photon deploy` is run, and write: photon deploy"
