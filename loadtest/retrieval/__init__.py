"""What retrieval benches and search quality share: corpora, filled folders, indexes, judged collections."""
