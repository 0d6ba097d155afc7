"""Answers that match a JSON schema, a regular expression or a choice: all other tokens are masked."""
