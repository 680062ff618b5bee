"""Tests inside vLLM's own environment (`make test-vllm`); where vLLM is missing they are skipped."""

from __future__ import annotations

import os
from importlib.util import find_spec

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]
