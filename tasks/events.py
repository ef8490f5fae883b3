"""Events for automations on the Prefect server: their names and their form there."""

from photon_core.evidence.events import Event

LEFT_OUT = "photon.site.left_out"  # of the resource photon.site.<run>.<site>; payload: run, round, site, reason


def emit(event: Event) -> None:
    """Report to the Prefect server that a round excluded a site."""
    from prefect.events import emit_event

    emit_event(
        LEFT_OUT,
        resource={
            "prefect.resource.id": f"photon.site.{event.run}.{event.member}",
            "prefect.resource.name": f"{event.member} (run {event.run})",
        },
        payload={"run": event.run, "round": event.round, "site": event.member, "reason": event.data["reason"]},
    )
