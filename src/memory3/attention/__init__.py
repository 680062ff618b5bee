"""One softmax over memories and context: kernels, the layout of memories as tensors, rotary positions, the cache they lie
in front of.
"""
