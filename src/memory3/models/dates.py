"""One day for all chat templates: what prints today's date would change the prefix every day, and every memory with it.

transformers gives templates a function ``strftime_now`` and lets nobody pass another. So a macro of that name is put in
front of the template: it fills every directive of a format in for the one day.
"""

from __future__ import annotations

from datetime import datetime

__all__ = ["DATE_STRING", "on_one_day"]

_DAY = datetime(2024, 1, 1)
#: What templates that take a ``date_string`` are given.
DATE_STRING = _DAY.strftime("%d %b %Y")

#: Of C's strftime; with ``-`` between, without leading zeros.
_DIRECTIVES = "aAbBcCdDeFgGhHIjklmMnprRsStTuUVwWxXyYzZ"


def _macro() -> str:
    values = {f"%{letter}": _DAY.strftime(f"%{letter}") for letter in _DIRECTIVES}
    values |= {f"%-{letter}": values[f"%{letter}"].lstrip("0 ") or "0" for letter in "deHIjklmMSUVWyY"}
    filled = "".join(f"|replace({directive!r},{value!r})" for directive, value in values.items())
    # Two percent signs are one, and what follows them is no directive. The last print keeps a line break that the
    # template may begin with.
    written = f"{{{{ format|replace('%%','\\0'){filled}|replace('\\0','%') }}}}"
    return "{%- macro strftime_now(format) -%}" + written + "{%- endmacro %}{{ '' }}"


_MACRO = _macro()


def on_one_day(template: str) -> str:
    """The template with the one day for today; templates that do not ask for today stay as they are."""
    return _MACRO + template if "strftime_now" in template else template
