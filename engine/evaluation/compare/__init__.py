"""Every arm of a server on the user's own questions, side by side.

questions, server -> contenders -> answers (kept as they come) -> figures -> recommendation -> report
"""
