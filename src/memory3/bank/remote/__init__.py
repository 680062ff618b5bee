"""A bank that another machine serves: read over HTTP with the code that reads a folder. The device keeps weights, codebook and
a cache.
"""

from memory3.bank.remote.bank import RemoteBank
from memory3.bank.remote.view import RemoteView

__all__ = ["RemoteBank", "RemoteView"]
