"""The database: the only truth of the knowledge base."""
