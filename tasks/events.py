"""Names of the Prefect events that rounds emit and automations wait for."""

LEFT_OUT = "photon.site.left_out"  # of the resource photon.site.<run>.<site>; payload: run, round, site, reason
