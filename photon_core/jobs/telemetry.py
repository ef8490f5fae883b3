"""Nothing that Photon starts sends usage data: the one table of the settings that turn it off."""

import os

OFF = {
    "DO_NOT_TRACK": "1",  # Prefect's client, Hugging Face's libraries, MLflow
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # the server's heartbeat, every ten minutes
    "GX_ANALYTICS_ENABLED": "false",  # Great Expectations reads it when it is imported
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MOSAICML_PLATFORM": "false",  # Composer would log every training to its maker's platform
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",  # crash reports; a run goes to W&B where `trackers` says so
}


def telemetry_off() -> None:
    """Turn it off in this process and in all that it starts; before any of these libraries is imported."""
    os.environ.update(OFF)
