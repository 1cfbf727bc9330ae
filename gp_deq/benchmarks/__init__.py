"""The experiments behind the claims in the documentation, each runnable from the command line.

==============  ==========================================================================
module          command
==============  ==========================================================================
``demo``        ``gp-deq demo``
``depth``       ``python -m gp_deq.benchmarks.depth``, which draws
                ``docs/figures/depth_collapse.png``
``speed``       ``gp-deq benchmark speed``
==============  ==========================================================================
"""
