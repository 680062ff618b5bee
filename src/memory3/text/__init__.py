"""From files to references: readers of many formats, and splitting at natural boundaries."""

from memory3.text.readers import read_documents
from memory3.text.splitting import split

__all__ = ["read_documents", "split"]
