"""Whether a Prefect server may listen on an address: on any but loopback, only with a password."""

from ipaddress import ip_address


def check_exposure(host: str, auth: str | None) -> str:
    """What is wrong with a server on `host`, and what to write instead; empty if nothing is.

    Args:
        host: an address, or a name; the empty one is every address of the machine.
        auth: user:password, as PREFECT_SERVER_API_AUTH_STRING has it; None for none.
    """
    if is_loopback(host) or has_password(auth):
        return ""
    found = "is not set" if auth is None else "has no password: it is user:password"
    return (
        f"the server would listen on {host or 'every address'}, and PREFECT_SERVER_API_AUTH_STRING {found}. "
        "Whoever reaches a server without a password can run any command at every site. Write: "
        'export PREFECT_SERVER_API_AUTH_STRING="photon:$(openssl rand -hex 24)"; or serve this machine alone: '
        "--host 127.0.0.1"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. Of names, which may come to mean another address, localhost alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def has_password(auth: str | None) -> bool:
    """Whether user:password has a password."""
    return bool((auth or "").partition(":")[2].strip())
