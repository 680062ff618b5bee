"""Encoding on several processes or machines, for one bank with one committer.

    bank.write(documents, pool=...)     plans and commits, in the caller's process (`memory3.bank.write.run`)
    ShardPool                           hands shards to workers, tries again where one is lost, keeps what came back
    Spool                               what came back and is not committed yet, by shard, in a folder
    worker                              a process, or an actor of Ray, that holds the model

A shard's id is a hash of all that it is made of, so it may be encoded anywhere, twice, or by a worker that was given up.
Nothing here knows a table.
"""
