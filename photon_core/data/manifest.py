"""data.json, the manifest of a site's prepared data, which `photon prepare` commits: reading it."""

from pydantic import ValidationError

from photon_core.errors import DataError, FederationError
from photon_core.hashing import sha256_bytes
from schemas.manifests import DataManifest
from schemas.view import SiteView

NAME = "data.json"


def load_manifest(view: SiteView) -> DataManifest | None:
    """The site's data manifest, or None if the site is not prepared.

    Raises:
        DataError: data.json exists but is not a data manifest.
        FederationError: data.json is another site's.
    """
    path = view.data_dir / NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return data_manifest(content, str(path), view.name)


def data_manifest(content: bytes, name: str, site: str) -> DataManifest:
    """Parse a data manifest.

    Args:
        content: bytes of data.json.
        name: label of the file for errors.
        site: name of the expected site.

    Raises:
        DataError: the bytes are not a data manifest.
        FederationError: the manifest is another site's, such as one of another federation with the same folder.
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
            f"{name}: is the data of site '{manifest.site[:80]}', not of '{site}', and is kept; write another "
            f"state_dir and shards for site '{site}', or remove it"
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
            f"{view.data_dir / NAME}: does not exist, so site '{view.name}' has no prepared data; "
            f"run photon prepare --site {view.name}"
        )
    return manifest


def data_sha256(view: SiteView) -> str:
    """Hash of data.json's bytes, by which an update names the data that it was trained on.

    Raises:
        DataError: the site is not prepared.
    """
    require_manifest(view)
    return sha256_bytes((view.data_dir / NAME).read_bytes())
