"""Operations with a contract, a float32 reference and a GPU implementation, one folder each.

Importing this package needs neither a GPU nor triton. transformers probes a hub package of the same name,
so this one stays light and carries a version.
"""

__version__ = "0.0.0"
