"""Token deltas on their way from generators to a gateway: one connection for all answers between two processes.

A message of Ray Serve costs both sides more CPU than a frame here, and one frame carries what a few steps brought to
every answer.
"""
