"""Training of the joint model: pinned samples, an order that is a function, a loop, checkpoints.

The loop (`loop`) is plain torch; Ray starts it in several processes (`run`) and nothing else.
"""
