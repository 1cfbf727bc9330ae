"""The experiments behind the claims in the documentation, each runnable from the command line.

=====================  ===================================================================
module                 command
=====================  ===================================================================
``coincident``         ``python -m gp_deq.benchmarks.coincident``, which draws
                       ``docs/figures/deker_coincident.png``
``deker_convergence``  ``gp-deq benchmark deker-convergence``
``demo``               ``gp-deq demo``
``depth``              ``python -m gp_deq.benchmarks.depth``, which draws
                       ``docs/figures/depth_collapse.png``
``equivalents``        ``python -m gp_deq.benchmarks.equivalents``, which draws
                       ``docs/figures/equivalents-*.png``
``speed``              ``gp-deq benchmark speed``
=====================  ===================================================================
"""
