"""Covariance of features that stochastic gradient updates learn (DEKer).

After a finite number of updates the kernel is computed update by update (:mod:`.updates`). At their
fixed point it is a function of one angle if the link is homogeneous (:mod:`.angle_fixed_point`),
and a covariance that solves one equation for each pair otherwise
(:mod:`.covariance_fixed_point`).
"""

from .kernel import DEKerKernel, check_step_size

__all__ = ["DEKerKernel", "check_step_size"]
