"""Teaching a model something new, and measuring what it knows: training data, LoRA and full fine-tuning, evaluation.

It knows models and prompts. It must not know HTTP, notebooks or the terminal; `peft` is loaded in functions, for it is
an extra.
"""
