"""The figures of the paper (arXiv 2407.01178), to stand beside ours.

They are marked as those of another model: its 2.4B model trained with memories, and its peers.
"""

from __future__ import annotations

from typing import Any

from memory3.evaluation.tables import ResultTable, Section

__all__ = ["PAPER", "paper_figures"]

#: By suite: a caption, column names, rows. Figures are percentages unless a caption says otherwise.
PAPER: dict[str, dict[str, Any]] = {
    "general": {
        "caption": "General benchmarks, leaderboard shots (ARC-C 25, HellaSwag 10, others 5)",
        "columns": ["model", "average", "ARC-C", "HellaSwag", "MMLU", "Winogrande", "GSM8k", "C-Eval", "CMMLU"],
        "rows": [
            ["with memory", 63.31, 58.11, 80.51, 59.68, 74.51, 52.84, 59.29, 58.24],
            ["with memory, quantised", 63.33, 57.94, 80.65, 59.66, 75.14, 52.24, 59.66, 58.05],
            ["without memory", 60.80, 57.42, 73.14, 57.29, 74.35, 51.33, 56.32, 55.72],
        ],
    },
    "hallucination": {
        "caption": "Hallucination",
        "columns": ["model", "HaluEval QA", "HaluEval dialogue", "TruthfulQA MC1", "TruthfulQA MC2", "HalluQA"],
        "rows": [["with memory", 56.61, 53.91, 38.80, 57.72, 35.96]],
    },
    "professional": {
        "caption": "Professional tasks; law is JEC-QA. Retrieval-augmented models were given 3, 5 and 7 references",
        "columns": ["model", "law", "medicine"],
        "rows": [["with memory", 39.38, 56.22]],
    },
    "mt-bench": {
        "caption": "MT-Bench, scores of 1 to 10",
        "columns": ["model", "score"],
        "rows": [["SFT", 5.31], ["DPO", 5.80]],
    },
    "speed": {
        "caption": "Tokens per second (table 21): A800, batch 32, 128 tokens in, 128 out, worst case. "
        "Peers read five references as text",
        "columns": ["model", "with retrieval", "without", "ratio"],
        "rows": [
            ["explicit memory, 2.4B", 733.0, 1131.0, 0.648],
            ["MiniCPM-2B, text", 501.5, 974.0, 0.515],
            ["Qwen1.5-4B, text", 460.7, 1002.0, 0.460],
            ["explicit memory, end-side device", 27.6, 44.36, 0.622],
        ],
    },
}


def paper_figures(suite: str) -> list[Section]:
    """What the paper says of a suite of `memory3 eval`, as a section of its report; nothing where it says nothing."""
    told = PAPER.get(str(suite))  # read from a file
    if told is None:
        return []
    rows = [[str(row[0]), *(f"{x:g}" for x in row[1:])] for row in told["rows"]]
    note = "Of the paper's 2.4B model, which was trained with memories. Not comparable with the figures above; here for scale."
    return [Section("The paper's own figures (another model)", [note], [ResultTable(told["columns"], rows, told["caption"])])]
