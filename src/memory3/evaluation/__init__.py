"""Evaluation: what a model answers from memories, from the same references as text, and from nothing.

On question sets and on the field's benchmarks.

    suite -> tasks -> items -> modes (memory, text, none, and their controls) -> rows of outputs -> means, intervals, report

Every figure has its controls (random memories, the memories another question got), its count and its 95% bootstrap interval.
Scoring of benchmarks is that of lm-evaluation-harness.
"""
