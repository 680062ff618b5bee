"""What a piece of knowledge costs in weights, in memory and as text, and where it is cheapest (PAPER.md sections 1, 3 and 7).

Arithmetic on a model's shape alone: no weights are loaded. `memory3.planner.cost` holds the paper's formulas, ``memory3 plan`` shows them.
"""
