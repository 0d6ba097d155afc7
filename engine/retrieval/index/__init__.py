"""The searchable side of a collection: caches that follow the store."""
