"""The verdict in one sentence, from what was measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memory3.checking.reading import COMPARED
from memory3.checking.selection import ALL, PACKED, TEXT

__all__ = ["DONT", "MORE", "READS", "USE", "WORTH", "Verdict", "judge", "refused"]

USE, MORE, DONT = "use", "use with more bytes", "don't use"
#: Share of text's gain that memories of all pairs must be able to have: where even the upper end of the interval lies below,
#: reading itself loses too much, and no budget helps.
WORTH = 0.8
#: Share of questions that a model should answer right from the text itself. Below it memories may do as well as text, and the
#: model is of little use with either: what is said of memories is true, and the model deserves a look.
READS = 0.1


@dataclass(frozen=True)
class Verdict:
    """May memories of this model be used?

    Attributes:
        choice: `USE`, `MORE` or `DONT`.
        sentence: the choice with its reason.
        settings: options of ``memory3 write`` that differ from what was checked.
    """

    choice: str
    sentence: str
    settings: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """Whether they may be used at all."""
        return self.choice != DONT

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"choice": self.choice, "ok": self.ok, "sentence": self.sentence, "settings": dict(self.settings)}


def refused(reason: str) -> Verdict:
    """Of a model that cannot be attached.

    Args:
        reason: in a sentence.
    """
    return Verdict(DONT, f"Don't: {reason}", {})


def judge(parity: Mapping[str, Any], selection: Mapping[str, Any] | None) -> Verdict:
    """The verdict on a model.

    Args:
        parity: of `memory3.checking.reading.measure_parity`.
        selection: of `memory3.checking.selection.summed_up`; None where parity made it needless.
    """
    if not parity["ok"]:
        name, figure = max(parity["compared"].items(), key=lambda each: float(each[1]["difference"]))
        return refused(
            f"the model does not compute from memory what it computes from text ({COMPARED[name]}: logits differ by "
            f"{_percent(figure['difference'])} of their spread, {_percent(parity['allowed'])} can be rounding)."
        )
    assert selection is not None
    arms = {arm["name"]: arm for arm in selection["arms"]}
    low, high = selection["gain"]["interval"]
    asked = f"{selection['questions']} questions of these documents"
    if low <= 0:
        return refused(
            f"on {asked} text of the same passages does not clearly help this model ({selection['gain']['mean']:+.2f} nats a "
            f"token [{low:.2f}, {high:.2f}]), so that memories have nothing to gain here."
        )
    whole = arms[ALL]["gain"]
    if whole["interval"][1] < WORTH:
        return refused(
            f"on {asked} even memories of all pairs gain only {_share(whole)} of what text gains, so that no budget helps."
        )
    besides = ""
    if selection["second"]["more"]["interval"][0] > selection["margin_nats"]:
        besides = " A second reference beside costs memory clearly more than text: read the best alone (`--gap 0`)."
    right = arms[TEXT]["right"]
    if right["mean"] < READS:
        low, high = right["interval"]
        besides += (
            f" But this model answers only {right['mean']:.0%} [{low:.0%}, {high:.0%}] of them right from the text itself: "
            "is it loaded as it was trained?"
        )
    own, best, packed = arms[selection["configured"]], arms[selection["recommended"]], arms[PACKED]
    margin = f"{selection['margin']:.0%} of text's gain ({selection['margin_nats']:.2f} nats a token) of all pairs"
    if not own["within"]:
        return Verdict(
            MORE,
            f"Use with more bytes: the smallest budget within {margin} on {asked} is {best['budget']}, "
            f"{_kilobytes(best['bytes'])} a reference before packing; the {own['budget']} that was configured gains "
            f"{_share(own['gain'])} of what text gains.{besides}",
            {"budget": best["budget"]},
        )
    packing = selection["packing"]
    if packing["costs"]["interval"][1] > selection["margin_nats"]:
        low, high = packing["costs"]["interval"]
        return Verdict(
            MORE,
            f"Use with more bytes: {own['budget']} stays within {margin} on {asked}, but packing it by {packing['codec']} "
            f"costs {packing['costs']['mean']:.2f} nats [{low:.2f}, {high:.2f}] more; take a larger codec, or raw at "
            f"{_kilobytes(own['bytes'])} a reference.{besides}",
            {"codec": "raw"},
        )
    smaller = f" {best['budget']} would do as well." if best["pairs"] < own["pairs"] else ""
    return Verdict(
        USE,
        f"Use: with budget {own['budget']} memories stay within {margin} on {asked}; packed by {packing['codec']}, "
        f"{_kilobytes(packed['bytes'])} a reference, they gain {_share(packed['gain'])} of what text gains.{smaller}{besides}",
        {},
    )


def _share(gain: Mapping[str, Any]) -> str:
    low, high = gain["interval"]
    return f"{gain['share']:.0%} [{low:.0%}, {high:.0%}]"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"


def _kilobytes(number: float) -> str:
    return f"{number / 1000:,.0f} KB"
