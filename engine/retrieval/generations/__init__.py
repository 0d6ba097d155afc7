"""Another generation of a collection: built beside the one that is searched, compared with it, put in its place."""
