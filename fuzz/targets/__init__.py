"""One module per decoder: ``check(data)`` fails on what must not be; ``SEEDS`` to begin with."""
