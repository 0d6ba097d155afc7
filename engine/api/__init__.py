"""What a client sees: schemas, routes, server-sent events, limits and the error table.

The only package that imports FastAPI.
"""
