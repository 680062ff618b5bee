"""What is fitted to a model before it is used, from texts and in minutes, and kept in the cache folder. Knows no terminal.

Each thing that can be fitted is a file: `codec`. `sample` draws the references that all are fitted on.
"""
