"""The data checks: a stream's raw documents before tokenising, a site's shards before every round's training."""

import json
from typing import Any

from photon_core.data.expectations import (
    Check,
    CheckResult,
    ExpectationFailed,
    Features,
    load_suite,
    run_suite,
)
from photon_core.data.features import DocumentFeatures, shard_features
from photon_core.data.manifest import data_sha256, require_manifest
from photon_core.data.record import read_record
from photon_core.data.shards import stage
from photon_core.data.verify import verify_files
from photon_core.errors import DataError
from photon_core.files import write_whole
from photon_core.hashing import canonical_json
from schemas.manifests import DataManifest
from schemas.sections.overlap import check_overlap
from schemas.view import SiteView

__all__ = ["Check", "CheckResult", "ExpectationFailed", "check_documents", "check_shards"]


def check_documents(view: SiteView, stream: str, features: DocumentFeatures) -> CheckResult:
    """Run the documents suite on a stream's features.

    Raises:
        ExpectationFailed: an expectation is not met; the message names site, expectation, column, value and place.
        DataError: the suite is wrong.
    """
    parameters = {
        "max_document_bytes": view.federation.data.max_document_bytes,
        "max_duplicate_share": view.federation.data.max_duplicate_share,
    }
    result = run_suite(load_suite("documents"), features.row(), parameters)
    if result.failed:
        details = result.remedies | {
            column: "; ".join(filter(None, (first, result.remedies.get(column))))
            for column, first in features.first.items()
        }
        raise ExpectationFailed(view.name, result.failed, f"stream '{stream}'", details)
    return result


def check_shards(view: SiteView, tokenizer_sha256: str) -> CheckResult:
    """Verify the site's shards and run the shards suite on them.

    Args:
        view: site of the shards; the federation file has the limits.
        tokenizer_sha256: hash of the federation's tokenizer, from the run manifest.

    Raises:
        FederationError: the site's folders overlap after links are resolved.
        DataError: the site is not prepared, or not for the streams of the federation file.
        CorruptFile: a file is missing, truncated or corrupt.
        ExpectationFailed: an expectation is not met; the message names site, expectation, column and value.
    """
    check_overlap(view.federation, [view.name], look=False)  # the text need not exist any more
    stage(view)
    manifest = require_manifest(view)
    missing = [stream.name for stream in view.streams if stream.name not in manifest.streams]
    if missing:
        raise DataError(
            f"site '{view.name}': stream '{missing[0]}' is in the federation file but not prepared; "
            f"run photon prepare --site {view.name}"
        )
    notes = verify_files(view, manifest)
    sequence_length = view.federation.model.max_seq_len
    parameters = {
        "tokenizer_sha256": [tokenizer_sha256],
        "highest_token": view.federation.model.vocab_size - 1,
        "sequence_length": sequence_length,
        "max_eot_share": view.federation.data.max_eot_share,
        "min_train_tokens": view.federation.data.min_train_tokens or view.local.batch_size * sequence_length,
    }
    features = _features(view, manifest)
    result = run_suite(load_suite("shards"), features, parameters, notes)
    if result.failed:
        raise ExpectationFailed(view.name, result.failed, "shards", result.remedies)
    return result


def _features(view: SiteView, manifest: DataManifest) -> Features:
    path = view.cache_dir / "features.json"
    # the manifest's hash covers every file that the features come from
    key = data_sha256(view)
    try:
        cached: dict[str, Any] = json.loads(path.read_bytes())
        if cached["data_sha256"] == key:
            return dict(cached["features"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    eot = read_record(view.data_dir / next(iter(manifest.streams))).eot
    features = shard_features(view, manifest, eot)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, canonical_json({"data_sha256": key, "features": features}))
    return features
