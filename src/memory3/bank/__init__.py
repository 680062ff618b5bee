"""Memories on disk: a Lance table of references with their embeddings and sparse key-values. Knows nothing of generation."""

from memory3.bank.bank import Bank
from memory3.bank.cache import CacheStatistics, MemoryCache
from memory3.bank.embedder import Embedder, TextEmbedder
from memory3.bank.format.manifest import BankManifest
from memory3.bank.protocol import MemoryWriter
from memory3.bank.reader import MemoryReader
from memory3.bank.record import MemoryRecord
from memory3.bank.reports import BankInfo, DocumentEntry, Hit, VerifyReport, WriteProgress, WriteReport
from memory3.bank.tiers import TierBytes, Tiers, TierStatistics
from memory3.bank.write.plan import Shard, WritePlan
from memory3.bank.write.shard import EncodedShard, encode_shard

__all__ = [
    "Bank",
    "BankInfo",
    "BankManifest",
    "CacheStatistics",
    "DocumentEntry",
    "Embedder",
    "EncodedShard",
    "Hit",
    "MemoryCache",
    "MemoryReader",
    "MemoryRecord",
    "MemoryWriter",
    "Shard",
    "TextEmbedder",
    "TierBytes",
    "TierStatistics",
    "Tiers",
    "VerifyReport",
    "WritePlan",
    "WriteProgress",
    "WriteReport",
    "encode_shard",
]
