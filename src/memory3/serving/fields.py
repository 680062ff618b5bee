"""Fields of request bodies: what is not known, and what cannot be done, is refused by name and never passed over."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from memory3.errors import MissingDependency

try:
    from pydantic import AfterValidator, BaseModel, ConfigDict, Field
    from pydantic_core import PydanticCustomError, core_schema
except ImportError as error:
    raise MissingDependency(str(error.name or "pydantic"), "serve", "memory3 serve") from None

__all__ = [
    "Characters",
    "Choices",
    "MemoryOptions",
    "MemoryQuery",
    "Mode",
    "Name",
    "Plain",
    "Seed",
    "Stop",
    "StreamOptions",
    "Strict",
    "Temperature",
    "Tokens",
    "TopP",
    "User",
    "only",
]

Mode = Literal["memory", "text", "none"]
#: Objects within objects of `Plain`.
_DEEPEST = 32


class Strict(BaseModel):
    """An object of a body: fields that it does not have are refused, and no text is taken for a number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class only:
    """A field that changes nothing: it may be absent or null, or have one of the ``neutral`` values."""

    def __init__(self, *neutral: Any) -> None:
        self._allowed = [None, *neutral]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"enum": self._allowed}

    def _check(self, value: Any) -> Any:
        if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self._allowed):
            return value
        neutral = [repr(one) for one in self._allowed if one is not None]
        instead = f", or give {' or '.join(neutral)}" if neutral else ""
        raise PydanticCustomError(
            "unsupported", "{message}", {"message": f"this server does not support it: leave it out{instead}"}
        )


def _can_be_said(value: Any, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise PydanticCustomError("invalid", "it is nested too deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("invalid", "give finite numbers")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise PydanticCustomError("invalid", "it has a lone surrogate, which is no character") from None
    for one in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
        _can_be_said(one, depth + 1)
    return value


#: An object of any fields, of which the answer may tell again: what JSON or UTF-8 cannot write is refused.
Plain = Annotated[dict[str, Any], AfterValidator(_can_be_said)]
#: Text that UTF-8 can write: pydantic looks at this only where a text has bounds.
Characters = Annotated[str, AfterValidator(_can_be_said)]
Name = Annotated[str, Field(min_length=1, max_length=300)]
Temperature = Annotated[float | None, Field(ge=0, le=2)]
TopP = Annotated[float | None, Field(ge=0, le=1)]
Seed = Annotated[int | None, Field(ge=-(2**63), lt=2**63)]
Tokens = Annotated[int | None, Field(ge=1)]
Choices = Annotated[int | None, Field(ge=1)]
Stop = Annotated[str, Field(min_length=1, max_length=500)] | list[Annotated[str, Field(min_length=1, max_length=500)]] | None
#: Who asks on whose behalf: told by clients for the logs of others, and of no effect on any answer.
User = Annotated[str | None, Field(max_length=1000)]

_Text = Annotated[str, Field(max_length=500)]
_Scalar = _Text | bool | int | float


class MemoryOptions(Strict):
    """How the bank of the model is read. OpenAI's clients pass it by ``extra_body={"memory3": {...}}``."""

    mode: Mode | None = None
    k: Annotated[int | None, Field(ge=0)] = None
    gap: Annotated[float | None, Field(ge=0, le=2)] = None
    where: (
        Annotated[dict[_Text, _Scalar | Annotated[list[_Scalar], Field(min_length=1, max_length=64)]], Field(max_length=16)]
        | None
    ) = None


class MemoryQuery(BaseModel):
    """The same in the address, for clients that cannot add to a body: ``?mode=text&k=3``."""

    model_config = ConfigDict(extra="forbid")

    mode: Mode | None = None
    k: Annotated[int | None, Field(ge=0)] = None
    gap: Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False)] = None


class StreamOptions(Strict):
    """How an answer is streamed."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, only(False)] = None
