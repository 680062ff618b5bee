"""Readers of documents: `read_documents` and one file per format."""

from memory3.text.readers.read import read_documents

__all__ = ["read_documents"]
