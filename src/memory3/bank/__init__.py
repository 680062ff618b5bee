"""Memories on disk: a Lance table of references with their embeddings and sparse key-values. Knows nothing of generation."""

from memory3.bank.bank import Bank
from memory3.bank.cache import CacheStatistics, MemoryCache
from memory3.bank.embedder import Embedder, TextEmbedder
from memory3.bank.format.manifest import BankManifest
from memory3.bank.reports import BankInfo, DocumentEntry, Hit, VerifyReport, WriteProgress, WriteReport
from memory3.bank.writer import MemoryWriter

__all__ = [
    "Bank",
    "BankInfo",
    "BankManifest",
    "CacheStatistics",
    "DocumentEntry",
    "Embedder",
    "Hit",
    "MemoryCache",
    "MemoryWriter",
    "TextEmbedder",
    "VerifyReport",
    "WriteProgress",
    "WriteReport",
]
