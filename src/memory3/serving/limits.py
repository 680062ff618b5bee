"""`Limits`: how much one request, and all of them together, may ask of a server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from memory3.errors import ConfigError, setting

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Bounds.

    Attributes:
        body_bytes: of a body.
        upload_bytes: of a body that uploads a file.
        body_seconds: until a body is read; one that uploads a file has ``seconds``.
        header_seconds: until the head of a request is read.
        unread_seconds: that a client may read nothing of what was sent to it.
        seconds: until a request is answered; what there is by then is the answer.
        prompt_characters: of all messages of a prompt together.
        messages: of a chat.
        answer_tokens: of an answer, where nobody says another.
        most_answer_tokens: of an answer.
        choices: answers to one request (``n``, and prompts of a completion).
        texts: that one request embeds.
        stops: stop texts.
        connections: at once.
        k: references read at once.

    Raises:
        ConfigError: one is not above 0.
    """

    body_bytes: int = 2 << 20
    upload_bytes: int = 64 << 20
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    unread_seconds: float = 30.0
    seconds: float = 300.0
    prompt_characters: int = 200_000
    messages: int = 512
    answer_tokens: int = 512
    most_answer_tokens: int = 4096
    choices: int = 8
    texts: int = 256
    stops: int = 8
    connections: int = 512
    k: int = 64

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not value > 0:
                raise ConfigError(f"{setting(one.name, value)}: give a number above 0")
