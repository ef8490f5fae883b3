"""Composer's loggers at a site, by the federation file's names."""

from pathlib import Path
from typing import Any

from photon_core.errors import PhotonError
from schemas.sections.local import Logger as LoggerSection

LOGGERS = {
    "tensorboard": "TensorboardLogger",
    "mlflow": "MLFlowLogger",
    "wandb": "WandBLogger",
    "file": "FileLogger",
}


def make_loggers(
    sections: list[LoggerSection], folder: Path, key: str = "local.loggers", first: bool = True
) -> list[Any]:
    """Composer's loggers, in the order of the federation file.

    Args:
        sections: sections of the file.
        folder: default folder of loggers that write files.
        key: configuration key of the sections, for messages.
        first: flag: first rank; other ranks write no file.

    Raises:
        PhotonError: a logger's package is not installed, or the logger does not accept its options.
    """
    loggers = []
    for section in sections:
        if section.name == "file" and not first:
            continue
        import composer.loggers

        options = dict(section.options)
        if section.name == "tensorboard":
            options.setdefault("log_dir", str(folder / "tensorboard"))
        elif section.name == "file":
            options["filename"] = str(folder / options.get("filename", "composer-{run_name}.log"))
        elif section.name == "mlflow":
            options.setdefault("tracking_uri", f"sqlite:///{(folder / 'mlflow.db').absolute()}")
        try:
            loggers.append(getattr(composer.loggers, LOGGERS[section.name])(**options))
        except (ImportError, TypeError) as error:
            raise PhotonError(f"{key}: cannot start '{section.name}': {error}") from error
    return loggers
