"""Imports and lookups that the fork server makes for its children, after torch, composer and streaming.

The module never uses CUDA.
"""

import functools

from composer.utils import collect_env

import photon_core.data.sequences
import photon_core.training.evaluate
import photon_core.training.train  # noqa: F401

# Every Trainer looks up its processor (another Python process, 1.2 s) and Composer's commit (all of its files,
# 0.05 s). Look them up once, here, and let the children inherit the results.
collect_env.get_composer_commit_hash = functools.lru_cache(maxsize=1)(collect_env.get_composer_commit_hash)
collect_env.get_composer_commit_hash()
collect_env.get_cpu_model()
