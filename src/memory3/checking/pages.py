"""What a check found as sections of tables, for terminals and for one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memory3.checking.reading import COMPARED
from memory3.evaluation.report import page
from memory3.evaluation.tables import ResultTable, Section, figure

__all__ = ["about", "html_page", "sections"]

_DASH = "–"


def sections(found: Mapping[str, Any]) -> list[Section]:
    """All of one check, the verdict first.

    Args:
        found: of `memory3.checking.check.check`.
    """
    parts = [Section(f"Verdict: {found['verdict']['choice']}", [found["verdict"]["sentence"]])]
    if found["parity"]:
        parts.append(_parity(found["parity"]))
    if found["selection"]:
        parts += [_selection(found["selection"]), _packing(found["selection"])]
    if found["speed"]:
        parts.append(_speed(found["speed"], found["selection"]["writing"]))
    return parts


def about(found: Mapping[str, Any]) -> str:
    """Where the figures come from, in a line."""
    where = found["machine"]
    device = where["device"] if where["device"] != "cpu" else f"{where['cores']} cores, {where['threads']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return f"{found['finished']}; {device}; {versions}; {found['seconds']:.0f} s. Brackets are 95% bootstrap intervals."


def html_page(found: Mapping[str, Any]) -> str:
    """One page that needs no other file and runs no script; names and texts from elsewhere are escaped.

    Args:
        found: of `memory3.checking.check.check`.
    """
    kept = {name: value for name, value in found.items() if name not in ("parity", "selection", "speed")}
    return page(f"memory3 check: {found['model']}", about(found), sections(found), kept)


def _parity(parity: Mapping[str, Any]) -> Section:
    rows = [
        [COMPARED[name], _percent(each["difference"]), _percent(each["largest"]), f"{each['same']:.1%}"]
        for name, each in parity["compared"].items()
    ]
    return Section(
        "Parity",
        [
            f"{parity['texts']} texts of these documents, {parity['places']:,} places, memories of all pairs, "
            f"{parity['dtype']}. Root mean square of the difference of logits, as a share of their spread. "
            f"{_percent(parity['allowed'])} can be rounding: the model's own logits differ by "
            f"{_percent(parity['rounding'])} when it reads a text in two passes.",
        ],
        [ResultTable(["compared", "difference", "largest of a place", "same next token"], rows)],
    )


def _selection(selection: Mapping[str, Any]) -> Section:
    rows = []
    for arm in selection["arms"]:
        share = arm.get("gain")
        rows.append(
            [
                arm["name"] + (" (recommended)" if arm["name"] == selection["recommended"] else ""),
                f"{arm['bytes'] / 1000:,.0f} KB" if "bytes" in arm else _DASH,
                figure(arm["nll"]["mean"], arm["nll"]["interval"], False),
                figure(arm["right"]["mean"], arm["right"]["interval"], True),
                figure(share["share"], share["interval"], True) if share else _DASH,
                figure(arm["above_all"]["mean"], arm["above_all"]["interval"], False, signed=True)
                if "above_all" in arm
                else _DASH,
            ]
        )
    gain, second = selection["gain"], selection["second"]
    costs = {name: figure(each["mean"], each["interval"], False, signed=True) for name, each in second.items()}
    return Section(
        "Selection",
        [
            f"{selection['questions']} cloze questions of these documents, each of the one reference that holds its answer. "
            f"Text gains {figure(gain['mean'], gain['interval'], False)} nats a token over nothing. Recommended is the "
            f"smallest budget that loses at most {selection['margin']:.0%} of that, {selection['margin_nats']:.2f} nats, "
            "against all pairs, with the whole interval.",
            f"Another reference of these documents beside costs text {costs['text']} nats a token, memory {costs['memory']}. "
            f"Memory minus text: {costs['more']}.",
        ],
        [
            ResultTable(
                [
                    "read from",
                    "a reference",
                    "NLL a token",
                    "writes the answer",
                    "share of text's gain",
                    "NLL above all pairs",
                ],
                rows,
                "NLL of the answer, nats a token; writes it: greedy decoding gives the answer, token by token; gain: share of "
                "what text gains; above all: NLL above that of all pairs. Sizes are before packing, but for packed.",
            )
        ],
    )


def _packing(selection: Mapping[str, Any]) -> Section:
    packing = selection["packing"]
    cost = figure(packing["costs"]["mean"], packing["costs"]["interval"], False, signed=True)
    said = (
        f"Codec {packing['codec']}: {packing['bytes'] / 1000:,.1f} KB a reference instead of "
        f"{packing['raw_bytes'] / 1000:,.1f} KB, for {cost} nats a token."
    )
    if packing["codec"] == "raw":
        said += " No codec is fitted to this model and these settings: `memory3 calibrate` does it."
    return Section("Packing", [said])


def _speed(speed: Mapping[str, Any], writing: Mapping[str, Any]) -> Section:
    modes: Sequence[tuple[str, str]] = (("memory", "memory"), ("text", "text"), ("none", "nothing"))
    rows = [
        [
            label,
            str(speed[mode]["prompt_tokens"]),
            f"{1000 * speed[mode]['first_token']:,.0f} ms",
            f"{speed[mode]['tokens_per_second']:.1f}",
        ]
        for mode, label in modes
    ]
    return Section(
        "Speed",
        [
            f"Medians of {speed['turns']} answers of {speed['tokens']} tokens that read {speed['references']} references, "
            "search left out. Writing a reference takes "
            f"{writing['encoding_seconds']:.2f} s of encoding and {writing['packing_seconds']:.2f} s of packing.",
        ],
        [ResultTable(["read from", "prompt tokens", "first token", "tokens/s"], rows)],
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"
