"""Questions made by rule of paragraphs of an encyclopedia, for `make adapter`: who, when, where and what, and sentences with a gap.

    python rule_questions.py PARAGRAPHS.jsonl.gz QUESTIONS.jsonl.gz

Reads records of title and text, in English, the title being what the text is about; writes records of passage, question and answer. A rule is a pattern whose group is the answer, and ways to ask for it;
every answer stands in its passage. `memory3 train --blanks` makes the gaps alone, of any text.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
DATE = rf"(?:\d{{1,2}} {MONTH} \d{{3,4}}|{MONTH} \d{{1,2}}, ?\d{{3,4}}|(?:c\. ?)?\d{{4}})"
WORD = r"(?:[A-Z][\w'’-]+|[A-Z]\.)"
NAME = rf"{WORD}(?:(?: (?:of|de|von|van|the|and|der|di|la|le|du|bin|ibn|al))*(?: {WORD}))*"
PLACE = f"{NAME}(?:, {NAME})?"
KIND = (
    "film|politician|singer|actor|actress|footballer|writer|director|painter|village|king|queen|bishop|poet|player|composer|album|song|company|band|novel|nobleman|"
    "general|officer|artist|journalist|producer|musician|university|newspaper|magazine"
)
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (rf"\(.{{0,80}}?({DATE}) ?[–-]+ ?{DATE}\)", ("When was {} born?", "What is the birth date of {}?")),
    (
        rf"\(.{{0,80}}?{DATE} ?[–-]+ ?({DATE})\)",
        ("When did {} die?", "What is the date of death of {}?", "On what date did {} die?"),
    ),
    (rf"[Bb]orn(?: on)?:? ({DATE})", ("When was {} born?", "What is the date of birth of {}?")),
    (rf"[Bb]orn (?:on )?(?:{DATE} )?in ({PLACE})", ("Where was {} born?", "In which place was {} born?")),
    (rf"[Dd]ied(?: on)? ({DATE})", ("When did {} die?",)),
    (rf"[Dd]ied (?:on )?(?:{DATE} )?in ({PLACE})", ("Where did {} die?",)),
    (rf"directed by ({NAME})", ("Who directed {}?", "Who is the director of {}?")),
    (rf"written by ({NAME})", ("Who wrote {}?",)),
    (rf"produced by ({NAME})", ("Who produced {}?",)),
    (rf"(?:composed|music) by ({NAME})", ("Who composed the music of {}?",)),
    (rf"(?:stars|starring|featuring) ({NAME})", ("Who stars in {}?",)),
    (rf"(?:son|daughter|child) of ({NAME})", ("Who was a parent of {}?", "Whose child was {}?")),
    (rf"(?:married|wife of|husband of|marriage to) ({NAME})", ("Who was {} married to?", "Who did {} marry?")),
    (rf"(?:brother|sister|sibling) of ({NAME})", ("Who was a sibling of {}?",)),
    (rf"succeeded by ({NAME})", ("Who succeeded {}?",)),
    (rf"succeeded ({NAME}) as", ("Whom did {} succeed?",)),
    (
        rf"(?:is|was) (?:an?|the) ((?:[\w-]+ ){{1,6}}?(?:{KIND}))\b",
        ("What is {}?", "What was {}?", "What kind of thing or person is {}?"),
    ),
    (rf"(?:located|situated) in ({PLACE})", ("Where is {} located?", "Where is {}?")),
    (rf"(?:released|premiered) (?:on |in )({DATE})", ("When was {} released?",)),
    (rf"(?:founded|established|formed|built) (?:on |in )({DATE})", ("When was {} founded?",)),
    (r"based on (?:the )?((?:novel|play|book|story) .{3,40}?)(?: by|[.,])", ("What is {} based on?",)),
    (
        rf"(?:graduated from|educated at|studied at|attended) (?:the )?({NAME})",
        ("Where did {} study?", "Which school did {} attend?"),
    ),
    (r"known (?:as|for) ((?:[\w'-]+ ?){2,8})", ("What is {} known for?", "What else is {} known as?")),
)
GAPS = ("Fill in the blank: {}", "What is missing here? {}", "Complete: {}", 'Which words stand in the gap? "{}"')
DATE_GAPS = ('When? "{}"', "Which date is missing? {}", "Fill in the date: {}")
BEGINNINGS = ("Complete the sentence: {}", "What comes next? {}", "Go on: {}")


def questions(title: str, text: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """By every rule that finds something, and of three sentences with a gap."""
    for pattern, ways in RULES:
        found = re.search(pattern, text)
        if found and found[1]:
            yield rng.choice(ways).format(title), found[1]
    sentences = [s for s in re.split(r"(?<=[a-z0-9)\]])\. (?=[A-Z])", text) if 40 < len(s) < 260]
    rng.shuffle(sentences)
    for sentence in sentences[:3]:
        spans = [m for m in re.finditer(rf"{DATE}|\b\d[\d,.]*\b|{NAME}", sentence) if m.start() > 12 and len(m[0]) > 3]
        spans = [m for m in spans if m[0] not in title]
        if not spans:
            continue
        left_out = rng.choice(spans)
        start, end = left_out.span()
        if start > 30 and rng.random() < 0.5:
            yield rng.choice(BEGINNINGS).format(sentence[:start].strip()), left_out[0]
        else:
            ways = DATE_GAPS if re.fullmatch(DATE, left_out[0]) else GAPS
            yield rng.choice(ways).format(f"{sentence[:start]}____{sentence[end:]}"), left_out[0]


def main(source: Path, target: Path) -> None:
    """Write the questions of every paragraph, and say how many."""
    rng, seen, made = random.Random(31), set(), 0
    with gzip.open(source, "rt", encoding="utf-8") as paragraphs, gzip.open(target, "wt", encoding="utf-8") as out:
        for record in map(json.loads, paragraphs):
            text = record["text"].strip()
            if len(text) < 120 or text in seen:
                continue
            seen.add(text)
            for question, answer in questions(re.sub(r" ?\(.*?\)", "", record["title"]).strip(), text, rng):
                answer = answer.strip(" ,;.")
                if 1 < len(answer) < 70 and answer in text and len(question) < 300:
                    out.write(json.dumps({"passage": text, "question": question, "answer": answer}, ensure_ascii=False) + "\n")
                    made += 1
    print(f"{made:,} questions on {len(seen):,} paragraphs")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
