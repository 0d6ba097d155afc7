"""Encoded examples to the best LoRA adapter.

    EncodedExample -> plan_epoch -> pack -> AdapterModel.loss -> AdamW -> Evaluator -> checkpoint -> TrainingResult

Examples of a batch lie end to end in one row without padding, and only attention sees them apart. Logits exist at
completion positions alone. What a step does is a function of the examples, the settings and the seed, so a run that
was killed goes on to the same adapter, bit for bit on the same machine.
"""
