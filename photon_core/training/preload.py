"""What the fork server imports and asks ahead, after torch, composer and streaming. Never touches CUDA."""

import functools

from composer.utils import collect_env

import photon_core.data.sequences
import photon_core.training.evaluate
import photon_core.training.train  # noqa: F401

# Every Trainer asks which processor (another Python process, 1.2 s) and which commit of Composer (all of its
# files, 0.05 s) it runs on: ask once, here, and let the children inherit the answers.
collect_env.get_composer_commit_hash = functools.lru_cache(maxsize=1)(collect_env.get_composer_commit_hash)
collect_env.get_composer_commit_hash()
collect_env.get_cpu_model()
