"""Writing documents into a bank in three steps that need not run in one process.

    plan     which documents are new, changed, unchanged, gone or in conflict; those to write are cut into shards
    shard    one shard becomes rows with embeddings and packed memories: of shard, model and embedder alone
    commit   one committer, who holds the bank's lock, puts whole documents into the table

`memory3.bank.Bank.write` drives all three, shard by shard. `Bank.plan`, `encode_shard` and `Bank.commit` are for several
machines.
"""
