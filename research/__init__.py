"""Research: what was measured once, and the code that measured it. No part of the package; commands of memory3 reach it
through `memory3.checkout`.
"""
