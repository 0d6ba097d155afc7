"""Bytes of a document to text, title, sections and chunks."""
