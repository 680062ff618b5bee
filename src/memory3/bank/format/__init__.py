"""What a bank holds, told without a disk: rows and their checksums, records, manifest, names and version ids.

See docs/bank-format.md.
"""
