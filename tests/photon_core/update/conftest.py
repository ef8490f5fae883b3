"""A site with shards, as for the tests of training."""

from tests.photon_core.training.conftest import make_site

__all__ = ["make_site"]
