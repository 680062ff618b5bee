"""Training: teach a model to write and read memories (arXiv 2407.01178, section 5).

The loop, schedules and several processes are transformers' Trainer and accelerate; LoRA is peft's; all come with the extra
``train``. Ours is what a step reads: references encoded inside it, with gradients, by the code that serves them.
"""
