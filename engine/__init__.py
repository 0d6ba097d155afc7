"""Switchyard: hybrid serving of retrieval and fine-tuned adapters behind one endpoint."""

__version__ = "0.1.0"
