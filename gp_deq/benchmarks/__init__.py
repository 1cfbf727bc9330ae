"""The experiments behind the claims of the documentation, and what they have in common.

A module that defines an ``EXPERIMENT`` is a command, ``gp-deq benchmark NAME``, which lists them by
itself. ``demo`` is ``gp-deq demo``.
"""
