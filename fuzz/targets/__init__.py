"""One module per reader of foreign bytes, or for a few small ones.

``check(data)`` fails on what must not be; ``SEEDS`` are inputs to begin with.
"""
