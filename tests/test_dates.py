"""A chat template that prints today's date writes the same on any day, so that a bank opens tomorrow."""

from __future__ import annotations

from datetime import datetime

import pytest
from tiny import CHAT_TEMPLATE, tiny_chat_tokenizer, tiny_model
from transformers.utils import chat_template_utils

from memory3.config import MemoryConfig
from memory3.llm import Memory3
from memory3.models.dates import on_one_day
from memory3.models.frame import render

DAY = datetime(2024, 1, 1)


class Another(datetime):
    """A day on which somebody asks a bank that was written before."""

    @classmethod
    def now(cls, tz=None):
        return datetime(2031, 11, 23, 17, 5, 9)


@pytest.mark.parametrize("when", ["%d %B %Y", "%A, %-d %b %y", "%Y-%m-%d %H:%M:%S", "100%% of %j", "%e%%d", "today"])
def test_formats_are_filled_in_as_strftime_does(monkeypatch, when):
    monkeypatch.setattr(chat_template_utils, "datetime", Another)
    tokenizer = tiny_chat_tokenizer()
    tokenizer.chat_template = (
        f"{{% if strftime_now is defined %}}{{% set day = strftime_now({when!r}) %}}{{% endif %}}"
        f"{{% macro again() %}}{{{{ strftime_now({when!r}) }}}}{{% endmacro %}}{{{{ day }}}}|{{{{ again() }}}}"
    )
    assert render(tokenizer, [{"role": "user", "content": "x"}]) == f"{DAY.strftime(when)}|{DAY.strftime(when)}"


def test_other_templates_stay_as_they_are_and_line_breaks_too():
    assert on_one_day(CHAT_TEMPLATE) == CHAT_TEMPLATE
    tokenizer = tiny_chat_tokenizer()
    written = []
    for comment in ("", "{# strftime_now #}"):
        tokenizer.chat_template = "\n first" + comment
        written.append(render(tokenizer, [{"role": "user", "content": "x"}]))
    assert written == ["\n first", "\n first"]


@pytest.mark.parametrize("date", ["strftime_now('%d %B %Y')", "date_string or strftime_now('%Y')"])
def test_the_fingerprint_is_the_same_on_another_day(monkeypatch, date):
    prints = []
    for day in (datetime, Another):
        monkeypatch.setattr(chat_template_utils, "datetime", day)
        tokenizer = tiny_chat_tokenizer()
        tokenizer.chat_template = f"<s>system\nToday is {{{{ {date} }}}}</s>\n" + CHAT_TEMPLATE
        prints.append(Memory3(tiny_model(), tokenizer, MemoryConfig(reference_length=31), name="tiny").fingerprint)
    assert prints[0] == prints[1]
