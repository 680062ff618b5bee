"""Memories inside vLLM: a plugin by which every request of its continuous batching reads its own memories.

    scheduler   finds what each request reads, every 64 tokens, and whether it can be decoded; sends packed records, and which
                token reads which
    worker      decodes records, keeps them in a bounded pool, lays out what a step reads
    attention   one softmax over a row's memories and its context in the paged cache

vLLM is imported here and nowhere else in memory3, and only by the files that stand on it: `plugin`, `connector`,
`attention`, `inner`. The rest knows no vLLM and is tested without.
"""
