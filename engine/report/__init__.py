"""Pages that need nothing else: elements whose texts are escaped, plots in the page's colours, the document itself.

A page holds everything that it shows: no script, no address that a browser would fetch.
"""
