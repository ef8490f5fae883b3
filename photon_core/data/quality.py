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
from photon_core.data.paths import cache_dir, data_dir, find_site
from photon_core.data.record import read_record
from photon_core.data.shards import stage
from photon_core.data.verify import verify_files
from photon_core.errors import DataError
from photon_core.files import write_whole
from photon_core.hashing import canonical_json
from schemas.federation import Federation
from schemas.manifests import DataManifest
from schemas.sections.overlap import check_overlap

__all__ = ["Check", "CheckResult", "ExpectationFailed", "check_documents", "check_shards"]


def check_documents(federation: Federation, site: str, stream: str, features: DocumentFeatures) -> CheckResult:
    """Run the documents suite on a stream's features.

    Raises:
        ExpectationFailed: with site, expectation, column, observed value and place.
        DataError: the suite itself is wrong.
    """
    parameters = {
        "max_document_bytes": federation.data.max_document_bytes,
        "max_duplicate_share": federation.data.max_duplicate_share,
    }
    result = run_suite(load_suite("documents"), features.row(), parameters)
    if result.failed:
        details = result.remedies | {
            column: "; ".join(filter(None, (first, result.remedies.get(column))))
            for column, first in features.first.items()
        }
        raise ExpectationFailed(site, result.failed, f"stream '{stream}'", details)
    return result


def check_shards(federation: Federation, site: str, tokenizer_sha256: str) -> CheckResult:
    """Verify the site's shards and run the shards suite on them.

    Args:
        federation: the federation, whose numbers are the limits.
        site: whose shards.
        tokenizer_sha256: the federation's tokenizer, as its run manifest names it.

    Raises:
        FederationError: the site's places overlap, where links lead.
        DataError: the site is not prepared, or not for the streams of the federation file.
        CorruptFile: a file is missing, truncated or corrupt.
        ExpectationFailed: with site, expectation, column and observed value.
    """
    check_overlap(federation, [site], look=False)  # the text need not be there any more
    stage(federation, site)
    manifest = require_manifest(federation, site)
    wanted = [stream.name for stream in find_site(federation, site).streams]
    missing = [name for name in wanted if name not in manifest.streams]
    if missing:
        raise DataError(
            f"site '{site}': stream '{missing[0]}' is in the federation file but not prepared; "
            f"run photon prepare --site {site}"
        )
    notes = verify_files(federation, site, manifest)
    sequence_length = federation.model.max_seq_len
    parameters = {
        "tokenizer_sha256": [tokenizer_sha256],
        "highest_token": federation.model.vocab_size - 1,
        "sequence_length": sequence_length,
        "max_eot_share": federation.data.max_eot_share,
        "min_train_tokens": federation.data.min_train_tokens or federation.local.batch_size * sequence_length,
    }
    features = _features(federation, site, manifest)
    result = run_suite(load_suite("shards"), features, parameters, notes)
    if result.failed:
        raise ExpectationFailed(site, result.failed, "shards", result.remedies)
    return result


def _features(federation: Federation, site: str, manifest: DataManifest) -> Features:
    path = cache_dir(federation, site) / "features.json"
    # the manifest's hash covers every file that the features come from
    key = data_sha256(federation, site)
    try:
        cached: dict[str, Any] = json.loads(path.read_bytes())
        if cached["data_sha256"] == key:
            return dict(cached["features"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    eot = read_record(data_dir(federation, site) / next(iter(manifest.streams))).eot
    features = shard_features(federation, site, manifest, eot)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, canonical_json({"data_sha256": key, "features": features}))
    return features
