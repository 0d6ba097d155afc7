"""How likely continuations of a prompt are: the prompt is computed once, and what they have in common is too."""
