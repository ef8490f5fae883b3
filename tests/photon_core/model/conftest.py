"""Committed rounds of a small model, as for the tests of export."""

from tests.photon_core.export.conftest import make_rounds

__all__ = ["make_rounds"]
