"""Mathematics of explicit memory on plain tensors: attention over memories, token selection, rotary positions."""
