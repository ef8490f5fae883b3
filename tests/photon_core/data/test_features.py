"""What is counted over raw documents."""

from typing import Any

import pytest

from photon_core.data.documents import Document
from photon_core.data.features import DocumentFeatures


def features(*texts: Any) -> DocumentFeatures:
    found = DocumentFeatures(seed=17)
    for i, text in enumerate(texts):
        found.add(Document(text, "a.jsonl", i + 1))
    return found


def test_counts_and_places() -> None:
    found = features("x", None, 3, " ", "long é", None, [], "", "x")
    assert found.row() == {
        "documents": 9,
        "null_documents": 2,
        "wrong_type_documents": 2,
        "empty_documents": 2,
        "longest_document_bytes": 7,
        "duplicate_share": pytest.approx(1 / 3, abs=1e-6),
    }
    assert found.first == {
        "null_documents": "first at a.jsonl:2",
        "wrong_type_documents": "first at a.jsonl:3",
        "empty_documents": "first at a.jsonl:4",
        "longest_document_bytes": "a.jsonl:5",
    }
    assert len(found.distinct()) == 2


def test_no_documents() -> None:
    row = features().row()
    assert (row["documents"], row["duplicate_share"]) == (0, 0.0)
    assert len(features().distinct()) == 0
