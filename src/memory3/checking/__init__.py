"""A check before trust: may memories of a model be read in place of text, what do they cost, and what do they gain here?

One measurement is a file, and `check` runs them all. What they found is plain JSON; `pages` shows it. Knows no terminal.
"""
