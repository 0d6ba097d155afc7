"""Token deltas on their way from generators to a gateway: one connection for all answers between two processes.

A message of Ray Serve costs about a millisecond of CPU, both sides together. A frame costs a twentieth of that, and
one frame carries what a step brought to all answers.
"""
