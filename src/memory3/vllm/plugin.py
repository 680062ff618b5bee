"""The entry point ``vllm.general_plugins``: vLLM calls `register` in each of its processes."""

from __future__ import annotations

import logging

from memory3.errors import Memory3Error
from memory3.serving import threads  # noqa: F401 (before vLLM's workers begin)
from memory3.vllm.release import check_release

__all__ = ["CONNECTOR", "register"]

#: What the connector is called in ``--kv-transfer-config``.
CONNECTOR = "Memory3Connector"


def register() -> None:
    """Make vLLM know memory3's attention and connector. In another release of vLLM it does nothing but say so."""
    try:
        check_release()
    except Memory3Error as error:
        logging.getLogger("vllm").warning("memory3: %s", error)
        return
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, "memory3.vllm.connector", CONNECTOR)
    register_backend(AttentionBackendEnum.CPU_ATTN, "memory3.vllm.attention.MemoryAttentionBackend")
