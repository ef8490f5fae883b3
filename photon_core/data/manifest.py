"""data.json: reading what `photon prepare` committed at a site."""

from pydantic import ValidationError

from photon_core.errors import DataError, FederationError
from photon_core.hashing import sha256_bytes
from schemas.manifests import DataManifest
from schemas.view import SiteView

NAME = "data.json"


def load_manifest(view: SiteView) -> DataManifest | None:
    """The site's data manifest, or None when its data is not prepared.

    Raises:
        DataError: data.json is there but is not a data manifest.
        FederationError: it is another site's.
    """
    path = view.data_dir / NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return data_manifest(content, str(path), view.name)


def data_manifest(content: bytes, name: str, site: str) -> DataManifest:
    """The data manifest that these bytes are.

    Args:
        content: of data.json.
        name: where it is, for messages.
        site: whose.

    Raises:
        DataError: they are none.
        FederationError: they are another site's, such as one of another federation with the same folder.
    """
    try:
        manifest = DataManifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise DataError(
            f"{name}: not a data manifest ({where}: {first['msg']}); "
            f"remove it and run photon prepare --site {site}"
        ) from error
    if manifest.site != site:
        raise FederationError(
            f"{name}: is the data of site '{manifest.site[:80]}', not of '{site}', and stays; write a state_dir "
            "and shards of the site's own, or remove it"
        )
    return manifest


def require_manifest(view: SiteView) -> DataManifest:
    """The site's data manifest.

    Raises:
        DataError: the site is not prepared, or data.json is damaged.
    """
    manifest = load_manifest(view)
    if manifest is None:
        raise DataError(
            f"{view.data_dir / NAME}: not there, so site '{view.name}' has no prepared data; "
            f"run photon prepare --site {view.name}"
        )
    return manifest


def data_sha256(view: SiteView) -> str:
    """Hash of data.json's bytes: how an update names the data that it was trained on.

    Raises:
        DataError: the site is not prepared.
    """
    require_manifest(view)
    return sha256_bytes((view.data_dir / NAME).read_bytes())
