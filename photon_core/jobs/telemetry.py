"""The settings that turn off usage data in everything that Photon starts, in one table."""

import os

OFF = {
    "DO_NOT_TRACK": "1",  # Prefect's client, Hugging Face's libraries, MLflow
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # the server's heartbeat, every ten minutes
    "GX_ANALYTICS_ENABLED": "false",  # Great Expectations reads it when it is imported
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MOSAICML_PLATFORM": "false",  # Composer would log every training to its maker's platform
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",  # crash reports; runs are sent to W&B only if `trackers` names it
}


def telemetry_off() -> None:
    """Turn off usage data in this process and its children. Call it before any of these libraries is imported."""
    os.environ.update(OFF)
