"""From raw text to documents worth a memory (paper, section 5): what ``memory3 prepare`` does.

Stages, each of which can be left out: the main text of pages, language, rules, near-duplicates, quality, personal data.
They are steps of datatrove, whose executor, filters, MinHash and formatters do the work. A folder remembers how it was made.
"""

from memory3.preparing.run import prepare
from memory3.preparing.settings import STAGES, PrepareSettings

__all__ = ["STAGES", "PrepareSettings", "prepare"]
