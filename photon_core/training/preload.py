"""Our own modules that the fork server imports ahead; torch, composer and streaming come before them."""

import photon_core.data.sequences
import photon_core.training.evaluate
import photon_core.training.local  # noqa: F401
