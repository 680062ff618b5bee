"""What a piece of knowledge costs in weights, in memory and as text, and where it is cheapest (arXiv 2407.01178, sections 1
and 3 and appendix A).

Arithmetic on a model's shape alone: no weights are loaded. `memory3.planner.cost` holds the paper's formulas, ``memory3 plan``
shows them.
"""
