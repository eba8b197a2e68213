"""Benchmarks of the network's layers, each beside the one below it: ``python -m bench.net``.

A row is a kind of call, a column a way to make it, and the server of each runs in a process of its
own. To add a layer, add a :class:`~bench.net.subject.Subject` to ``SUBJECTS`` of
:mod:`bench.net.subjects` and what it must reach to :mod:`bench.net.goals`.
"""
