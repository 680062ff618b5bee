"""Where a bank's files and tables lie. `base` says what a bank needs of a place, each other file is one place."""
