"""Parts of the router's bench: measured outcomes replayed, and what a decision costs."""
