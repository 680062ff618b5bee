"""Tests inside vLLM, in an environment of its own (`make test-vllm`). Where vLLM is missing they are skipped.

The folder is not called vllm: ``tests`` is on the path, and every ``import vllm`` would find it.
"""

from __future__ import annotations

import os

from memory3.errors import Memory3Error
from memory3.vllm.release import check_release

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# One thread, bound to no core: threads that wait for one another on cores that others use are slower by a hundred times.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

try:
    check_release()
except Memory3Error:
    collect_ignore_glob = ["test_*.py"]
