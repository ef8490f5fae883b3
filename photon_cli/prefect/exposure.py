"""Addresses that a Prefect server may listen on: any address except loopback needs a password."""

from ipaddress import ip_address


def check_exposure(host: str, auth: str | None) -> str:
    """The problem with a server on `host`, and what to write instead; empty without a problem.

    Args:
        host: address or host name; empty for every address of the machine.
        auth: value of PREFECT_SERVER_API_AUTH_STRING, user:password; None if it is not set.
    """
    if is_loopback(host) or has_password(auth):
        return ""
    found = "is not set" if auth is None else "has no password: its form is user:password"
    return (
        f"the server would listen on {host or 'every address'}, but PREFECT_SERVER_API_AUTH_STRING {found}. "
        "Anyone who reaches a server without a password can run any command at every site. Write: "
        'export PREFECT_SERVER_API_AUTH_STRING="photon:$(openssl rand -hex 24)"; or listen on this machine only: '
        "--host 127.0.0.1"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host. Of names, only localhost: others may resolve to another address
    later."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def has_password(auth: str | None) -> bool:
    """Whether user:password has a password."""
    return bool((auth or "").partition(":")[2].strip())
