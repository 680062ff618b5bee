"""Errors as clients of the OpenAI API know them: a status, and ``{"error": {message, type, param, code}}``.

What a client did wrong names the field. What went wrong here does not tell paths of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memory3.errors import (
    BankBusy,
    BankChanged,
    BankError,
    BankFull,
    BankNotFound,
    ConfigError,
    EngineBusy,
    EngineClosed,
    FingerprintMismatch,
    InputError,
    Memory3Error,
    ServingError,
)

__all__ = ["Refused", "as_refusal", "error_body", "invalid", "no_range", "not_found", "of_validation"]

#: How clients call settings that messages mention.
_NAMES = {"max_new_tokens": "max_tokens"}
#: Seconds after which a client may ask again.
RETRY_AFTER = 1


class Refused(ServingError):
    """A request is answered with an error.

    Attributes:
        status: of HTTP.
        kind: OpenAI's ``type``.
        param: the field that is to blame; None: none is.
        code: a word for programs; None: none.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        return error_body(str(self), self.kind, self.param, self.code)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape.

    Args:
        message: what is wrong, and what to do.
        kind: OpenAI's ``type``.
        param: the field.
        code: a word for programs.
    """
    # What a client sent may stand in it, and not all of that can be written.
    message, param = _clean(message), None if param is None else _clean(param)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def invalid(param: str | None, message: str, code: str | None = None) -> Refused:
    """400: a field cannot be used as given.

    Args:
        param: the field.
        message: why, and what to do.
        code: a word for programs.
    """
    return Refused(400, message, param=param, code=code)


def not_found(what: str, name: str, param: str | None = None, code: str | None = None) -> Refused:
    """404. The same for what does not exist and for what this client may not see.

    Args:
        what: kind of thing.
        name: as the client said it.
        param: the field that named it.
        code: a word for programs.
    """
    return Refused(404, f"The {what} {name!r:.200} does not exist or you do not have access to it.", param=param, code=code)


def no_range(size: int) -> Refused:
    """416: there are no such bytes.

    Args:
        size: how many there are.
    """
    said = f"Range: there are {size:,} bytes, and none of these."
    return Refused(416, said, param="Range", code="invalid_range", headers={"Content-Range": f"bytes */{size}"})


def as_refusal(error: Exception, param: str | None = None) -> Refused:
    """What a client is told of any error.

    Args:
        error: of memory3, or of anything else; then it is a fault of the server, of which nothing is told.
        param: the field that is to blame where an input cannot be used.
    """
    if isinstance(error, Refused):
        return error
    if isinstance(error, EngineBusy):
        again = {"Retry-After": str(RETRY_AFTER)}
        return Refused(429, str(error), kind="rate_limit_error", code="busy", headers=again)
    if isinstance(error, EngineClosed):
        again = {"Retry-After": str(RETRY_AFTER)}
        return Refused(503, str(error), kind="server_error", code="shutting_down", headers=again)
    if isinstance(error, InputError | ConfigError):
        said = error.worded(lambda name: _NAMES.get(name, name))
        return Refused(400, said if param is None else f"{param}: {said}", param=param)
    if isinstance(error, BankError):
        return _of_bank(error)
    if isinstance(error, ServingError):
        return Refused(500, str(error), kind="server_error")
    return Refused(500, "The server failed. Its log says why, under the request id.", kind="server_error", code="failed")


def _of_bank(error: BankError) -> Refused:
    """Messages of banks name folders of this machine, which are not for clients."""
    again = {"Retry-After": str(RETRY_AFTER)}
    if isinstance(error, BankNotFound):
        return Refused(404, "The bank is no longer there.", param="model", code="bank_not_found")
    if isinstance(error, BankBusy):
        return Refused(409, "The bank is being written: ask again in a moment.", code="bank_busy", headers=again)
    if isinstance(error, BankFull):
        return Refused(507, "No space is left for the bank. What was acknowledged before is kept.", code="bank_full")
    if isinstance(error, BankChanged):
        message = "The bank was replaced while it was read: ask again."
        return Refused(503, message, kind="server_error", code="bank_changed", headers=again)
    if isinstance(error, FingerprintMismatch):
        message = "The bank was replaced by one of another model: it has to be rebuilt, or the server started anew."
        return Refused(503, message, kind="server_error", code="bank_of_another_model")
    message = "The bank cannot be read. The server's log says why, under the request id."
    return Refused(503, message, kind="server_error", code="bank_failed")


def of_validation(errors: Sequence[Mapping[str, Any]]) -> Refused:
    """What is wrong with a body or a query, from pydantic's list.

    Args:
        errors: as pydantic tells them; one is told.
    """
    # Where a field may be of several kinds, there is an error for each: the deepest is of the kind that was meant.
    field = errors[0].get("loc", ())[:2]
    first = max((one for one in errors if one.get("loc", ())[:2] == field), key=lambda one: len(one.get("loc", ())))
    kind = str(first.get("type", ""))
    place = [str(part) for part in first.get("loc", ())]
    if place and place[0] in ("body", "query", "path", "header", "cookie"):
        place = place[1:]
    if kind == "json_invalid":
        return invalid(
            None, f"The body is no JSON: {first.get('ctx', {}).get('error', 'it cannot be parsed')}.", "invalid_json"
        )
    # Names of the kinds that a value may be of are no part of the field's name.
    place = [part for part in place if not _is_kind(part)]
    name = ".".join(place)[:200]
    if not name:
        return invalid(
            None, "A body is needed: a JSON object, with the header Content-Type: application/json.", "missing_body"
        )
    if kind == "extra_forbidden":
        return invalid(name, f"{name} is not supported by this server: leave it out.", "unsupported_parameter")
    if kind == "missing":
        return invalid(name, f"{name} is missing.", "missing_parameter")
    message = str(first.get("msg", "it cannot be used")).strip().removeprefix("Value error, ")
    code = "unsupported_parameter" if kind == "unsupported" else "invalid_value"
    return invalid(name, f"{name}: {message[:500]}", code)


def _is_kind(part: str) -> bool:
    """Whether a part of pydantic's place names a kind, such as ``list[str]`` or ``TextPart``, and no field."""
    return "[" in part or part in ("str", "int", "float", "bool", "dict", "list", "constrained-str") or part[:1].isupper()


# Memory3Error is the root of all that is told; what is not of it is a fault.
assert issubclass(Refused, Memory3Error)
