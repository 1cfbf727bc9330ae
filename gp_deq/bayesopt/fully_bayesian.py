"""Surrogates that average over the hyperparameters of a deep-equilibrium kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gpytorch
import torch
from botorch.models.fully_bayesian import FullyBayesianSingleTaskGP, PyroModel
from botorch.models.transforms.input import InputTransform
from botorch.models.transforms.outcome import OutcomeTransform
from botorch.models.utils import validate_input_scaling
from botorch.models.utils.gpytorch_modules import (
    MIN_INFERRED_NOISE_LEVEL,
    get_gaussian_likelihood_with_lognormal_prior,
)
from botorch.utils.datasets import SupervisedDataset
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood, Likelihood
from gpytorch.means import Mean
from gpytorch.models import ExactGP
from gpytorch.module import Module
from gpytorch.priors import NormalPrior, Prior, UniformPrior
from torch import Tensor

from ..activations import Activation
from .covar_modules import get_covar_module
from .strength_prior import StrengthPrior


def _pyro() -> Any:
    try:
        import pyro
        import pyro.infer
    except ImportError as error:
        raise ImportError('Fully Bayesian models need Pyro: pip install "gp_deq[bayes]"') from error
    return pyro


class _Hyperparameter(NamedTuple):
    """A hyperparameter as a function of a latent variable that Pyro samples.

    With a prior on a half line, the latent variable has that prior, and the hyperparameter is the
    lower bound plus the latent variable, so that no sample can violate the bound. With a
    :class:`StrengthPrior` or none, the latent variable is uniform between the bounds. A factor
    corrects the density to that of the prior at the hyperparameter.

    Args:
        module: Module that has the hyperparameter.
        name: Name of the hyperparameter.
        shape: Shape of a sample.
        prefix: Put before the name in that of the latent variable, where another module has a
            hyperparameter of the same name.
    """

    module: Module
    name: str
    shape: tuple[int, ...] = ()
    prefix: str = ""

    @property
    def sample_name(self) -> str:
        return self.prefix + self.name

    @property
    def constraint(self) -> Interval:
        return getattr(self.module, f"raw_{self.name}_constraint")

    @property
    def prior(self) -> Prior | None:
        return getattr(self.module, f"{self.name}_prior", None)

    def sample(self) -> Tensor:
        pyro = _pyro()
        distribution = self._latent().expand(self.shape).to_event(len(self.shape))
        latent = pyro.sample(self.sample_name, distribution)
        value = self.value(latent)
        if isinstance(self.prior, StrengthPrior):
            share = self.prior.share(value)
            pyro.factor(f"{self.sample_name}_prior", self.prior.share_log_prob(share))
        elif self.prior is not None:
            correction = self.prior.log_prob(value) - self.prior.log_prob(latent)
            pyro.factor(f"{self.sample_name}_prior", correction.sum())
        return value

    @property
    def _power(self) -> float:
        """Power of the hyperparameter that the uniform latent variable is, with a bounded range."""
        return -2.0 if self.name == "regularization" else 1.0

    def _latent(self) -> Prior:
        if self.prior is not None and not isinstance(self.prior, StrengthPrior):
            return self.prior
        lower, upper = self.constraint.lower_bound, self.constraint.upper_bound
        ends = lower**self._power, upper**self._power
        return UniformPrior(torch.minimum(*ends), torch.maximum(*ends))

    def value(self, latent: Tensor) -> Tensor:
        lower, upper = self.constraint.lower_bound, self.constraint.upper_bound
        if self.prior is None or isinstance(self.prior, StrengthPrior):
            value = latent ** (1 / self._power)
        else:
            value = lower + latent
        return value.clamp(torch.nextafter(lower, upper), torch.nextafter(upper, lower))

    def set(self, values: Tensor) -> None:
        setattr(self.module, self.name, values.view_as(getattr(self.module, self.name)))


class DEQPyroModel(PyroModel):
    r"""Priors and likelihood of :class:`DEQFullyBayesianSingleTaskGP`, for Pyro.

    The priors are those of :func:`get_covar_module`, cut off at the bounds of its constraints, and
    BoTorch's for the mean, :math:`\mathcal N(0, 1)`, and the noise. For "deker" ``feature_scale``
    stays fixed, as for the default link it only scales the output. The latent variable
    ``regularization`` is the hyperparameter's power -2, the analogue of ``weight_variance``. Over a
    Matern or RBF kernel ``lengthscale`` is that kernel's, and ``base_outputscale`` its variance,
    which for homogeneous activations is one and is not sampled.

    Args:
        kernel: Name of the kernel, "deq-nngp" (default), "deq-ntk" or "deker".
        activation: Activation, for "deker" the link; that of :func:`get_covar_module` by default.
        base: What the network sits on, see :func:`get_covar_module`.
    """

    def __init__(
        self,
        kernel: str = "deq-nngp",
        activation: str | Activation | Callable[[Tensor], Tensor] | None = None,
        base: str | None = None,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.activation = activation
        self.base = base

    def set_inputs(  # type: ignore[override]
        self, train_X: Tensor, train_Y: Tensor, train_Yvar: Tensor | None = None
    ) -> None:
        """Set the training data, after all transforms.

        Args:
            train_X: Inputs, ``n x d``.
            train_Y: Outcomes, ``n x 1``.
            train_Yvar: Variances of the noise, ``n x 1``. Default: one variance, which is inferred.
        """
        self.train_X = train_X
        self.train_Y = train_Y
        self.train_Yvar = train_Yvar
        self.ard_num_dims = train_X.shape[-1]
        self._covar_module = self._make_covar_module()
        self._likelihood = self._make_likelihood()

    def sample(self) -> None:
        """Sample the hyperparameters and condition on the data, inside a sampler of Pyro.

        Raises:
            ImportError: Pyro is not installed.
            RuntimeError: The sampler is not one of Pyro.
        """
        pyro = _pyro()
        if not pyro.poutine.runtime.am_i_wrapped():
            raise RuntimeError(
                "DEQPyroModel.sample works inside Pyro's samplers only; BoTorch 0.18 and newer "
                "use NumPyro's. Fit with gp_deq.bayesopt.fit_fully_bayesian_model_nuts."
            )
        mean, covariance, noise = self.sample_mean(), self.sample_covariance(), self.sample_noise()
        n = len(self.train_Y)
        if n == 0:
            return
        factor = torch.linalg.cholesky(covariance + torch.diag_embed(noise.expand(n)))
        likelihood = pyro.distributions.MultivariateNormal(mean.expand(n), scale_tril=factor)
        pyro.sample("Y", likelihood, obs=self.train_Y.squeeze(-1))

    def sample_mean(self) -> Tensor:
        """Sample the constant mean, a scalar."""
        zero = self.train_Y.new_zeros(())
        return _pyro().sample("mean", NormalPrior(zero, zero + 1))

    def sample_noise(self) -> Tensor:
        """Sample the variance of the noise, a scalar; if given, return the variances, ``n``."""
        if self.train_Yvar is not None:
            return self.train_Yvar.squeeze(-1)
        return self._noise(self._likelihood)[0].sample()

    def sample_covariance(self) -> Tensor:
        """Sample the kernel's hyperparameters; return the covariance of the data, ``n x n``."""
        raw = {}
        paths = {module: path for path, module in self._covar_module.named_modules()}
        for hyperparameter in self._hyperparameters(self._covar_module):
            module, name = hyperparameter.module, f"raw_{hyperparameter.name}"
            value = hyperparameter.sample().view_as(getattr(module, name))
            path = f"{paths[module]}.{name}".removeprefix(".")
            raw[path] = hyperparameter.constraint.inverse_transform(value)
        with gpytorch.settings.lazily_evaluate_kernels(False):
            covariance = torch.func.functional_call(self._covar_module, raw, (self.train_X,))
        return covariance.to_dense()

    def postprocess_mcmc_samples(self, mcmc_samples: dict[str, Tensor]) -> dict[str, Tensor]:
        """The hyperparameters of the latent variables, strictly inside their constraints.

        Args:
            mcmc_samples: Samples of the latent variables by name, the number of samples first.

        Returns:
            Samples of the hyperparameters by the same names.
        """
        hyperparameters = (
            *self._hyperparameters(self._covar_module),
            *self._noise(self._likelihood),
        )
        values = {h.sample_name: h.value(mcmc_samples[h.sample_name]) for h in hyperparameters}
        return {"mean": mcmc_samples["mean"], **values}

    def get_dummy_mcmc_samples(self, num_mcmc_samples: int, **tkwargs: Any) -> dict[str, Tensor]:
        """The initial hyperparameters as samples, for a state dict to be loaded into.

        Args:
            num_mcmc_samples: Number of samples.
            **tkwargs: Keywords ``dtype`` and ``device`` of the samples.

        Returns:
            Samples of the hyperparameters by name.
        """
        samples = {"mean": torch.zeros(num_mcmc_samples, **tkwargs)}
        for h in (*self._hyperparameters(self._covar_module), *self._noise(self._likelihood)):
            value = getattr(h.module, h.name).detach().to(**tkwargs)
            samples[h.sample_name] = value.view(h.shape).expand(num_mcmc_samples, *h.shape)
        return samples

    def load_mcmc_samples(  # type: ignore[override]
        self, mcmc_samples: dict[str, Tensor]
    ) -> tuple[Mean, Kernel, Likelihood, None]:
        """Modules with the samples as a batch of hyperparameters.

        Args:
            mcmc_samples: Samples of the hyperparameters by name, the number of samples first.

        Returns:
            Mean, kernel and likelihood; and None for BoTorch's warping of the inputs, which this
            model does not have.
        """
        batch_shape = mcmc_samples["mean"].shape[:1]
        covar_module = self._make_covar_module(batch_shape)
        likelihood = self._make_likelihood(batch_shape)
        mean_module = self._build_mean_module(
            mcmc_samples, batch_shape, dtype=self.train_X.dtype, device=self.train_X.device
        )
        for h in (*self._hyperparameters(covar_module), *self._noise(likelihood)):
            h.set(mcmc_samples[h.sample_name])
        return mean_module, covar_module, likelihood, None

    def _make_covar_module(self, batch_shape: torch.Size | None = None) -> Kernel:
        return get_covar_module(
            self.kernel,
            self.ard_num_dims,
            batch_shape=batch_shape,
            activation=self.activation,
            base=self.base,
        ).to(self.train_X)

    def _make_likelihood(self, batch_shape: torch.Size | None = None) -> Likelihood:
        if self.train_Yvar is None:
            likelihood = get_gaussian_likelihood_with_lognormal_prior(batch_shape)
        else:
            noise = self.train_Yvar.squeeze(-1).expand(*(batch_shape or ()), -1)
            likelihood = FixedNoiseGaussianLikelihood(noise, batch_shape=batch_shape)
        return likelihood.to(self.train_X)

    def _hyperparameters(self, covar_module: Kernel) -> list[_Hyperparameter]:
        network = covar_module.base_kernel
        strength = "regularization" if self.kernel == "deker" else "weight_variance"
        # feature_scale of DEKer is left out, see the class
        inner = network if network.has_lengthscale else network.base_kernel
        scaled = isinstance(inner, ScaleKernel)
        below = [_Hyperparameter(inner, "outputscale", prefix="base_")] if scaled else []
        return [
            _Hyperparameter(covar_module, "outputscale"),
            _Hyperparameter(
                inner.base_kernel if scaled else inner, "lengthscale", (self.ard_num_dims,)
            ),
            _Hyperparameter(network, strength),
            _Hyperparameter(network, "bias_variance"),
            *below,
        ]

    def _noise(self, likelihood: Likelihood) -> list[_Hyperparameter]:
        """The noise as a hyperparameter; an empty list where its variances are given."""
        known = self.train_Yvar is not None
        return [] if known else [_Hyperparameter(likelihood.noise_covar, "noise")]


class DEQFullyBayesianSingleTaskGP(FullyBayesianSingleTaskGP):
    """A GP with one output that averages over samples of the hyperparameters of a DEQ kernel.

    The fully Bayesian twin of :class:`DEQSingleTaskGP`: fit it with
    :func:`fit_fully_bayesian_model_nuts`, then use it as BoTorch's
    :class:`~botorch.models.fully_bayesian.FullyBayesianSingleTaskGP`. Inputs belong in the unit
    cube and outcomes are to be standardised, if need be by the transforms.

    Args:
        train_X: Inputs, ``n x d``.
        train_Y: Outcomes, ``n x 1``.
        train_Yvar: Variances of the noise, ``n x 1``. Default: one variance, which is inferred.
        kernel: Name of the kernel, "deq-nngp" (default), "deq-ntk" or "deker".
        activation: Activation, for "deker" the link; that of :func:`get_covar_module` by default.
        outcome_transform: Transform of the outcomes. Default: none, as in BoTorch's fully Bayesian
            models.
        input_transform: Transform of the inputs. Default: none.
        base: What the network sits on, "matern", "rbf" or "affine", see :func:`get_covar_module`.

    Raises:
        ValueError: The kernel or the base is unknown, the activation or the base cannot be used
            with the kernel, or there is more than one output.

    Example:
        >>> import torch
        >>> from botorch.models.transforms import Standardize
        >>> from gp_deq.bayesopt import DEQFullyBayesianSingleTaskGP, fit_fully_bayesian_model_nuts
        >>> X = torch.linspace(0, 1, 6, dtype=torch.float64).unsqueeze(-1)
        >>> model = DEQFullyBayesianSingleTaskGP(X, X.sin(), outcome_transform=Standardize(1))
        >>> fit_fully_bayesian_model_nuts(
        ...     model, warmup_steps=4, num_samples=4, thinning=2, disable_progbar=True)
        >>> model.posterior(X).mean.shape  # one mean for each sample
        torch.Size([2, 6, 1])
        >>> model.posterior(X).mixture_mean.shape
        torch.Size([6, 1])
    """

    _pyro_model_class = DEQPyroModel
    pyro_model: DEQPyroModel

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        train_Yvar: Tensor | None = None,
        kernel: str = "deq-nngp",
        activation: str | Activation | Callable[[Tensor], Tensor] | None = None,
        outcome_transform: OutcomeTransform | None = None,
        input_transform: InputTransform | None = None,
        base: str | None = None,
    ) -> None:
        # BoTorch's __init__ is not called, since it requires JAX
        if not (train_X.ndim == train_Y.ndim == 2 and train_Y.shape == (len(train_X), 1)):
            raise ValueError(
                "A fully Bayesian model needs train_X of shape n x d and train_Y of shape n x 1, "
                f"got {tuple(train_X.shape)} and {tuple(train_Y.shape)}; for several outputs join "
                "models of one each in a ModelListGP."
            )
        if train_Yvar is not None and train_Yvar.shape != train_Y.shape:
            raise ValueError(
                f"train_Yvar must have the shape of train_Y, {tuple(train_Y.shape)}, got "
                f"{tuple(train_Yvar.shape)}."
            )
        with torch.no_grad():
            transformed_X = self.transform_inputs(train_X, input_transform)
        if outcome_transform is not None:
            outcome_transform.train()
            train_Y, train_Yvar = outcome_transform(train_Y, train_Yvar, X=transformed_X)
        self._validate_tensor_args(X=transformed_X, Y=train_Y, Yvar=train_Yvar)
        validate_input_scaling(transformed_X, train_Y, train_Yvar)
        if train_Yvar is not None:
            train_Yvar = train_Yvar.clamp_min(MIN_INFERRED_NOISE_LEVEL)
        self._num_outputs = 1
        self._input_batch_shape = train_X.shape[:-2]
        ExactGP.__init__(self, train_X, train_Y.squeeze(-1), GaussianLikelihood())
        self.mean_module = None
        self.covar_module = None
        self.likelihood = None
        self.pyro_model = self._pyro_model_class(kernel, activation, base)
        self.pyro_model.set_inputs(transformed_X, train_Y, train_Yvar)
        if outcome_transform is not None:
            self.outcome_transform = outcome_transform
        if input_transform is not None:
            self.input_transform = input_transform

    @property
    def median_lengthscale(self) -> Tensor:
        """Medians of the lengthscales over the samples, ``d``; over a base kernel those of it."""
        self._check_if_fitted()
        found = self.pyro_model._hyperparameters(self.covar_module)
        (lengthscale,) = (h.module.lengthscale for h in found if h.name == "lengthscale")
        return lengthscale.median(0).values.squeeze(0)

    @classmethod
    def construct_inputs(  # type: ignore[override]
        cls,
        training_data: SupervisedDataset,
        *,
        kernel: str = "deq-nngp",
        activation: str | Activation | Callable[[Tensor], Tensor] | None = None,
        base: str | None = None,
    ) -> dict[str, Any]:
        """Arguments of the model for a data set of BoTorch, as Ax asks for them.

        Args:
            training_data: Data set of BoTorch.
            kernel: Name of the kernel, see the class.
            activation: Activation or link, see the class.
            base: What the network sits on, see the class.

        Returns:
            Keyword arguments of the class.
        """
        inputs = super(FullyBayesianSingleTaskGP, cls).construct_inputs(training_data=training_data)
        for name in ("use_input_warping", "indices_to_warp"):
            inputs.pop(name)
        return {**inputs, "kernel": kernel, "activation": activation, "base": base}


def fit_fully_bayesian_model_nuts(
    model: DEQFullyBayesianSingleTaskGP,
    max_tree_depth: int = 6,
    warmup_steps: int = 512,
    num_samples: int = 256,
    thinning: int = 16,
    disable_progbar: bool = False,
    seed: int = 0,
) -> None:
    """Sample the hyperparameters of a model by Hamiltonian Monte Carlo, with Pyro's NUTS.

    It is called like BoTorch's function of this name, which since BoTorch 0.18 only takes models
    written in JAX, and leaves torch's random state alone. The defaults are BoTorch's.

    Args:
        model: Model to fit.
        max_tree_depth: Binary logarithm of the largest number of steps for a sample.
        warmup_steps: Number of samples that only adapt the sampler.
        num_samples: Number of samples after these.
        thinning: Distance between the samples that the model keeps.
        disable_progbar: Whether to show no progress bar.
        seed: Seed of the random numbers.

    Raises:
        ImportError: Pyro is not installed.
    """
    pyro = _pyro()
    model.train()
    # full_mass as in BoTorch: lengthscales, bias variance and output scale are correlated
    nuts = pyro.infer.NUTS(model.pyro_model.sample, full_mass=True, max_tree_depth=max_tree_depth)
    mcmc = pyro.infer.MCMC(
        nuts, num_samples=num_samples, warmup_steps=warmup_steps, disable_progbar=disable_progbar
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mcmc.run()
    samples = model.pyro_model.postprocess_mcmc_samples(mcmc.get_samples())
    model.load_mcmc_samples({name: value[::thinning] for name, value in samples.items()})
    model.eval()
