"""One step each: thin Prefect tasks over photon_core."""
