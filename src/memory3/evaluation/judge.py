"""A judge behind an OpenAI-compatible address: grades an answer from 1 to 10.

It knows HTTP and the words of the grading, nothing of models here.

The address and the key are those of the environment variables OPENAI_BASE_URL and OPENAI_API_KEY. The grading follows the
single-answer scheme of MT-Bench (L. Zheng et al., arXiv 2306.05685) in words of our own, so scores compare runs of one judge
here and not with published ones.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from memory3.errors import ConfigError, JudgeError

__all__ = ["Judge"]

_ORDER = """You grade answers of an assistant. Consider whether the last answer of the conversation is correct, helpful, \
relevant, deep and detailed enough, and does what was asked. Do not be swayed by length.{reference} Say in a few sentences \
why, and end with a line of this form, the grade being a whole number from 1 (worthless) to 10 (perfect):
Rating: [[5]]"""
_REFERENCE = " A correct answer to compare with is given."
_GRADE = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")


class Judge:
    """Grades by one model.

    Attributes:
        model: its name there.
        address: base of the interface, up to ``/v1``.
    """

    def __init__(
        self, model: str, address: str, key: str = "", *, seconds: float = 120.0, tries: int = 4, pause: float = 2.0
    ) -> None:
        """``tries``: when the judge is busy or fails, with a pause that doubles each time.

        Raises:
            ConfigError: the address is no web address.
        """
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"judge at {address!r}: set OPENAI_BASE_URL to an address such as https://api.openai.com/v1")
        self.model, self.address = model, address.rstrip("/")
        self._key, self._seconds, self._tries, self._pause = key, seconds, tries, pause

    @classmethod
    def from_environment(cls, model: str) -> Judge:
        """By OPENAI_BASE_URL and OPENAI_API_KEY."""
        return cls(model, os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1"), os.environ.get("OPENAI_API_KEY", ""))

    def grade(self, messages: Sequence[Mapping[str, str]], reference: str = "") -> tuple[float | None, str]:
        """Grade 1 to 10 of the last message of a conversation, and the judge's words. None where it gives no grade.

        Args:
            messages: the conversation, each with ``role`` and ``content``.
            reference: a correct answer, if one is known.

        Raises:
            JudgeError: the judge cannot be reached or refuses.
        """
        told = "\n\n".join(f"### {message['role'].capitalize()}:\n{message['content']}" for message in messages)
        if reference:
            told = f"### Correct answer:\n{reference}\n\n{told}"
        order = _ORDER.format(reference=_REFERENCE if reference else "")
        said = self._ask([{"role": "system", "content": order}, {"role": "user", "content": told}])
        found = _GRADE.findall(said)
        grade = float(found[-1]) if found else None
        return (grade if grade is not None and 1 <= grade <= 10 else None), said

    def _ask(self, messages: Sequence[Mapping[str, str]]) -> str:
        body = json.dumps({"model": self.model, "messages": list(messages), "temperature": 0}).encode()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        request = urllib.request.Request(f"{self.address}/chat/completions", data=body, headers=headers)
        for attempt in range(self._tries):
            try:
                with urllib.request.urlopen(request, timeout=self._seconds) as response:
                    answer: Any = json.loads(response.read())
                return str(answer["choices"][0]["message"]["content"] or "")
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.reason}"
                if error.code not in (408, 409, 429) and error.code < 500:
                    raise JudgeError(
                        f"judge {self.model} at {self.address} refuses: {reason}. Check OPENAI_API_KEY and the judge's name"
                    ) from None
            except (OSError, http.client.HTTPException) as error:
                reason = str(error)
            except (ValueError, KeyError, IndexError, TypeError, RecursionError):
                reason = "its answer is not that of an OpenAI-compatible interface"
            if attempt + 1 < self._tries:
                time.sleep(self._pause * 2**attempt)
        raise JudgeError(f"judge {self.model} at {self.address} does not answer after {self._tries} tries: {reason}")
