"""What can be known of a question before it is answered, as numbers with stable names. numpy only, deterministic.

One module per tier, in the order of their cost: `lexical` (the words alone), `neighbours` (the embedding against what
adapters were trained on and against past questions), `scores` (the shape of a search's result).
"""
