"""Benchmarks of aspenfs on a real mount, side by side with its peers: ``python -m bench``."""
