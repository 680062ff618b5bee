"""One file for each codec: it registers name, options, cost and help (`memory3.codec.base`).

A file put here is a codec; no list names it. It imports torch where it computes and not at its top, so that plans are made
without torch. What takes more than some lines of arithmetic has a file of its own beside this folder.
"""
