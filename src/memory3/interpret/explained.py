"""An explained answer as one page of HTML that needs no other file and no network.

Every text in it is a stranger's: each is escaped, and data for the script stands in a block that no text can end. The page
allows the one script that is written here, by its hash, and nothing else. Without scripts it shows the whole answer.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["explained"]

_STYLE = """
:root{--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--back:#f6f8fa;--blue:9,105,218}
*{box-sizing:border-box}
body{font:15px/1.55 system-ui,sans-serif;color:var(--ink);max-width:82rem;margin:1.5rem auto;padding:0 1.2rem}
h1{font-size:1.3rem;margin:0 0 .2rem}h2{font-size:1rem;margin:1.4rem 0 .4rem}
.soft{color:var(--soft);font-size:.87rem}p{margin:.3rem 0}
.two{display:grid;grid-template-columns:minmax(0,1fr) 23rem;gap:2rem}
@media(max-width:60rem){.two{grid-template-columns:minmax(0,1fr)}}
aside{position:sticky;top:1rem;align-self:start}
.text{white-space:pre-wrap;overflow-wrap:anywhere}
.answer{border:1px solid var(--line);border-radius:6px;padding:.7rem .9rem;font-size:1.06rem;line-height:1.9}
.answer button{all:unset;cursor:pointer;white-space:pre-wrap;border-bottom:2px solid rgba(var(--blue),.35);border-radius:2px}
.answer button:hover,.answer button:focus-visible{outline:1px solid rgb(var(--blue))}
.answer button.on{background:#1f2328!important;color:#fff}
.passage{border:1px solid var(--line);border-radius:6px;margin:.6rem 0;padding:.5rem .9rem .7rem}
.passage.unread{opacity:.4}
.passage header{display:flex;gap:.8rem;flex-wrap:wrap;font-size:.87rem;color:var(--soft);margin-bottom:.25rem}
.passage header b{color:var(--ink)}
.passage i{font-style:normal;color:#8c959f}
.passage span{border-radius:2px}
table{border-collapse:collapse;font-size:.87rem;width:100%}
td,th{border-bottom:1px solid var(--line);padding:.15rem .5rem .15rem 0;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}
td.at{white-space:pre-wrap;overflow-wrap:anywhere}
.map{display:grid;gap:1px;font-size:.68rem;color:var(--soft);line-height:1}
.map b{height:.72rem;background:var(--back);display:block}.map em{font-style:normal;text-align:center;align-self:center}
""".strip()

_SCRIPT = """
const data = JSON.parse(document.getElementById('data').textContent);
const spans = data.passages.map((n, p) => [...document.querySelectorAll('#p' + p + ' [data-t]')]
  .reduce((all, e) => (all[e.dataset.t] = e, all), {}));
const cells = [...document.querySelectorAll('.map b')], buttons = [...document.querySelectorAll('.answer button')];
const rows = document.getElementById('heads'), about = document.getElementById('about');
const blue = (part) => part > 0 ? 'rgba(9,105,218,' + (0.85 * Math.sqrt(Math.min(1, part))).toFixed(3) + ')' : '';
const percent = (x) => (100 * x).toFixed(x < 0.1 ? 1 : 0) + '%';
function show(view) {
  const most = Math.max(1e-9, ...view.looks.map((look) => look[2]));
  spans.forEach((all, p) => {
    document.getElementById('p' + p).classList.toggle('unread', !view.reads.includes(p));
    for (const e of Object.values(all)) e.style.background = '';
  });
  for (const [p, t, share] of view.looks) {
    const e = spans[p][t];
    if (!e) continue;
    e.style.background = blue(share / most);
    e.title = percent(share) + ' of ' + view.whose + '; ' + e.dataset.kept;
  }
  const top = Math.max(1e-9, ...view.map.flat());
  view.map.flat().forEach((mass, n) => {
    cells[n].style.background = blue(mass / top);
    cells[n].title = cells[n].dataset.head + ': ' + percent(mass) + ' of its attention goes to memories';
  });
  rows.replaceChildren(...view.heads.map((head) => {
    const row = document.createElement('tr');
    const words = head.at.map(([p, t, mass]) => '[' + (p + 1) + '] ' + data.passages[p][t].trim() + ' ' + percent(mass));
    for (const [kind, text] of [['', head.layer + '.' + head.head], ['n', percent(head.mass)], ['at', words.join(', ')]]) {
      const cell = document.createElement('td');
      cell.className = kind;
      cell.textContent = text;
      row.append(cell);
    }
    return row;
  }));
  about.textContent = view.about;
}
let picked = -1;
function pick(n) {
  buttons.forEach((button, m) => button.classList.toggle('on', m === n));
  show(n < 0 ? data.all : data.answer[n]);
}
buttons.forEach((button, n) => {
  button.addEventListener('mouseenter', () => pick(n));
  button.addEventListener('focus', () => pick(n));
  button.addEventListener('click', () => { picked = picked === n ? -1 : n; pick(picked); });
});
document.querySelector('.answer').addEventListener('mouseleave', () => pick(picked));
document.addEventListener('keydown', (event) => { if (event.key === 'Escape') { picked = -1; pick(-1); } });
const asked = /^#token-([0-9]+)$/.exec(location.hash);
if (asked && Number(asked[1]) < buttons.length) picked = Number(asked[1]);
pick(picked);
""".strip()


def explained(found: Mapping[str, Any], question: str, model: str, bank: str) -> str:
    """The page.

    Args:
        found: from `memory3.interpret.explaining.explain`.
        question: that was asked.
        model, bank: their names, for the reader.
    """
    return "\n".join(_lines(found, question, model, bank)) + "\n"


def _lines(found: Mapping[str, Any], question: str, model: str, bank: str) -> Iterator[str]:
    allowed = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    whole = _overall(found)
    yield '<!doctype html><html lang="en"><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width"><title>memory3 ask --explain</title>'
    yield f"<style>{_STYLE}</style>"
    yield f"<h1>{escape(question)}</h1>"
    yield f'<p class="soft">Model {escape(model)}, bank {escape(bank)}. What each token of the answer looked at.</p>'
    yield '<div class="two"><main><h2>The answer</h2><div class="answer">' + "".join(_buttons(found)) + "</div>"
    if found["left_out"]:
        yield f'<p class="soft">{found["left_out"]:,} later tokens are not explained.</p>'
    yield (
        '<p class="soft">Point at a token, or click to hold it. Underlined darker: more of its attention went to memories. '
        "The attention that counts is that of the step which chose the token.</p>"
    )
    yield "<h2>What was read</h2>"
    if not found["passages"]:
        yield "<p>Nothing was read from the bank.</p>"
    else:
        yield (
            '<p class="soft">Bluer: looked at more, of the darkest token on view. Grey: no head kept the token, so it could '
            "not be looked at. Point at a token for its figures.</p>"
        )
    for n, passage in enumerate(found["passages"]):
        yield _passage(n, passage, found["memory_heads"])
    yield '</main><aside><h2>Heads that looked most</h2><p class="soft" id="about">' + escape(whole["about"]) + "</p>"
    yield "<table><thead><tr><th>head<th>on memories<th>most at</thead><tbody id=heads>"
    for head in whole["heads"]:
        yield f'<tr><td>{head["layer"]}.{head["head"]}<td class="n">{head["mass"]:.1%}<td class="at">'
    yield '</tbody></table><p class="soft">A head is layer.head, both from 0. Beside it: the part of its attention that went '
    yield "to memories, and the tokens of passages that got most of it.</p>"
    yield "<h2>All heads</h2>" + "".join(_map(found, whole["map"]))
    yield '<p class="soft">Rows are layers, columns are query heads. Bluer: a larger part of the head\'s attention went to '
    yield "memories.</p></aside></div>"
    yield f'<script type="application/json" id="data">{_data(found, whole)}</script>'
    yield f"<script>{_SCRIPT}</script>"


def _buttons(found: Mapping[str, Any]) -> Iterator[str]:
    most = max((token["mass"] for token in found["answer"]), default=0.0) or 1.0
    for n, token in enumerate(found["answer"]):
        depth = 0.05 + 0.95 * token["mass"] / most
        tip = f"token {n}: {token['mass']:.1%} of its attention went to memories"
        yield f'<button title="{tip}" style="border-color:rgba(9,105,218,{depth:.2f})">{escape(token["text"])}</button>'


def _passage(n: int, passage: Mapping[str, Any], heads: int) -> str:
    where = f"{passage['source']}:{passage['start']}-{passage['end']}"
    tokens = passage["tokens"]
    most = max((token["mass"] for token in tokens), default=0.0) or 1.0
    kept = sum(token["kept"] > 0 for token in tokens)
    said = (
        f'<section class="passage" id="p{n}"><header><b>[{n + 1}] {passage["share"]:.0%}</b><span>{escape(where)}</span>'
        f"<span>cosine {passage['score']:.2f}</span><span>{kept} of {len(tokens)} tokens kept by some head</span></header>"
        '<div class="text">'
    )
    for t, token in enumerate(tokens):  # no line breaks of ours: all that stand here are shown
        text = escape(token["text"])
        count = f"kept by {token['kept']} of {heads} heads"
        depth = 0.85 * (token["mass"] / most) ** 0.5
        shade = f'title="{count}" style="background:rgba(9,105,218,{depth:.3f})"'
        said += f'<span data-t="{t}" data-kept="{count}" {shade}>{text}</span>' if token["kept"] else f"<i>{text}</i>"
    return said + "</div></section>"


def _map(found: Mapping[str, Any], mass: Sequence[Sequence[float]]) -> Iterator[str]:
    columns = f"grid-template-columns:1.6rem repeat({max(1, found['heads'])},1fr)"
    yield f'<div class="map" style="{columns}"><em></em>' + "".join(f"<em>{head}</em>" for head in range(found["heads"]))
    most = max((one for row in mass for one in row), default=0.0) or 1.0
    for layer, row in zip(found["layers"], mass, strict=True):
        yield f"<em>{layer}</em>"
        for head, one in enumerate(row):
            depth = 0.85 * (one / most) ** 0.5
            yield f'<b data-head="{layer}.{head}" style="background:rgba(9,105,218,{depth:.3f})"></b>'
    yield "</div>"


def _overall(found: Mapping[str, Any], most: int = 8) -> dict[str, Any]:
    """The whole answer, in the shape of one token of it."""
    mass = [
        (one, layer, head) for layer, row in zip(found["layers"], found["map"], strict=True) for head, one in enumerate(row)
    ]
    named = sorted(mass, key=lambda one: -one[0])[:most]
    looks = [
        [p, t, token["mass"]]
        for p, passage in enumerate(found["passages"])
        for t, token in enumerate(passage["tokens"])
        if token["mass"] > 0
    ]
    count = len(found["answer"])
    average = sum(token["mass"] for token in found["answer"]) / max(1, count)
    return {
        "reads": list(range(len(found["passages"]))),
        "heads": [{"layer": layer, "head": head, "mass": one, "at": _often(found, layer, head)} for one, layer, head in named],
        "map": found["map"],
        "looks": looks,
        "whose": "what the answer paid to memories",
        "about": f"The whole answer, {count} tokens: {average:.1%} of the attention in these layers went to memories.",
    }


def _often(found: Mapping[str, Any], layer: int, head: int, most: int = 3) -> list[list[Any]]:
    """Tokens that a head looked at most, over those tokens of the answer for which it was among the first."""
    added: dict[tuple[int, int], float] = {}
    for token in found["answer"]:
        for one in token["heads"]:
            if (one["layer"], one["head"]) == (layer, head):
                for passage, at, mass in one["at"]:
                    added[passage, at] = added.get((passage, at), 0.0) + mass / len(found["answer"])
    return [[*at, round(mass, 4)] for at, mass in sorted(added.items(), key=lambda one: -one[1])[:most]]


def _data(found: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """What the script reads, as JSON in which no text can end the block that it stands in."""
    answer = [
        {
            **{key: token[key] for key in ("reads", "heads", "map", "looks")},
            "whose": "what this token paid to memories",
            "about": f"Token {n}, {token['text']!r}: {token['mass']:.1%} of its attention in these layers went to memories.",
        }
        for n, token in enumerate(found["answer"])
    ]
    passages = [[token["text"] for token in passage["tokens"]] for passage in found["passages"]]
    text = json.dumps({"passages": passages, "answer": answer, "all": whole}, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
