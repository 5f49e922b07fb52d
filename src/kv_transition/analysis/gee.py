"""Marginal effects of budget, length and method on the score of an example: generalized estimating equations.

A logit model of the mean of fractional scores with independence as working correlation; its covariance is the
bias-reduced one over clusters, so that rows of one example, and examples of one context, may be correlated in any way.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan, sqrt

import numpy as np
from scipy.special import ndtr, ndtri, stdtr

from kv_transition.analysis.cells import Array, Indices
from kv_transition.analysis.gates import MIN_CLUSTERS
from kv_transition.analysis.intervals import Interval, t_quantile

#: Clusters below which Student's t with C - p degrees of freedom takes the normal distribution's place.
SMALL_SAMPLE = 100
#: Fitted log odds beyond which a combination of methods, budgets and lengths is separated: its scores are all 0 or all 1.
SEPARATED = 15.0
#: Largest norm of the estimating equations at a solution, per row.
TOLERANCE = 1e-10


@dataclass(frozen=True)
class GeeFit:
    """Coefficients and their covariance; `params` is empty where `status` is not "ok".

    `df` is None where intervals come from the normal distribution.
    """

    status: str
    n_obs: int
    n_clusters: int
    df: int | None = None
    params: Array = field(default_factory=lambda: np.empty(0))
    cov: Array = field(default_factory=lambda: np.empty((0, 0)))

    def interval(self, i: int, conf: float) -> Interval:
        """Wald interval of a coefficient, with the two-sided p of "it is 0"."""
        return self.wald(float(self.params[i]), sqrt(float(self.cov[i, i])), conf)

    def wald(self, estimate: float, se: float, conf: float) -> Interval:
        """Estimate -+ quantile times standard error."""
        quantile = float(ndtri((1 + conf) / 2)) if self.df is None else t_quantile(conf, self.df)
        ratio = -abs(estimate) / se
        tail = float(ndtr(ratio)) if self.df is None else float(stdtr(self.df, ratio))
        return Interval(estimate, estimate - quantile * se, estimate + quantile * se, se=se, p=2 * tail)


def effects_design(x: Array, z: Array, method: Indices, methods: Sequence[str]) -> tuple[Array, list[str]]:
    """Columns and names of x * z * method; the first method is the reference.

    Parameters
    ----------
    x, z, method : (n,) centred log2 budget, centred log2 length, index into `methods`.
    """
    covariates = {"": np.ones(len(x)), "xc": x, "zc": z, "xc:zc": x * z}
    columns, names = [], []
    for name, covariate in covariates.items():
        columns.append(covariate)
        names.append(name or "Intercept")
        for i in range(1, len(methods)):
            columns.append(covariate * (method == i))
            names.append(f"{name}:method[{methods[i]}]".removeprefix(":"))
    return np.stack(columns, axis=1), names


def fit_gee(scores: Array, design: Array, clusters: Indices) -> GeeFit:
    """Fit the logit model of mean scores.

    Parameters
    ----------
    scores : (n,) in [0, 1]; design : (n, p); clusters : (n,) integer labels.

    Returns
    -------
    GeeFit with `status` "ok"; "no_scores"; "too_few" (under MIN_CLUSTERS clusters, or no more clusters than
    coefficients); "constant_scores"; "singular_design" (the coefficients cannot be told apart: a single length, a single
    budget); "separated" (some combination scores only 0 or only 1: its log odds have no finite estimate);
    "not_converged".

    References
    ----------
    Papke and Wooldridge (1996), J. Appl. Econom. 11:619 (fractional scores); Mancl and DeRouen (2001), Biometrics 57:126
    (the bias-reduced covariance).
    """
    n, p = design.shape
    n_clusters = len(np.unique(clusters))

    def without(status: str) -> GeeFit:
        return GeeFit(status, n, n_clusters)

    if n == 0:
        return without("no_scores")
    if n_clusters < MIN_CLUSTERS or n_clusters <= p:
        return without("too_few")
    if np.ptp(scores) == 0:
        return without("constant_scores")
    if np.linalg.matrix_rank(design) < p:
        return without("singular_design")
    found = _statsmodels_fit(scores, design, clusters)
    if found is None:
        return without("not_converged")
    params, cov, converged = found
    if not np.isfinite(params).all() or np.abs(design @ params).max() > SEPARATED:
        return without("separated")
    if not converged:
        return without("not_converged")
    if not (np.isfinite(cov).all() and (np.diag(cov) > 0).all()):
        return without("singular_design")
    df = n_clusters - p if n_clusters < SMALL_SAMPLE else None
    return GeeFit("ok", n, n_clusters, df, params, cov)


def _statsmodels_fit(scores: Array, design: Array, clusters: Indices) -> tuple[Array, Array, bool] | None:
    """(coefficients, bias-reduced covariance, converged); None where the library gives up. It warns of nothing."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from statsmodels.genmod.cov_struct import Independence
        from statsmodels.genmod.families import Binomial
        from statsmodels.genmod.generalized_estimating_equations import GEE

        model = GEE(scores, design, groups=clusters, family=Binomial(), cov_struct=Independence())
        try:
            result = model.fit(cov_type="bias_reduced", ctol=TOLERANCE * len(scores))
        except (np.linalg.LinAlgError, ValueError):
            return None
        if result is None or result.cov_robust_bc is None:
            return None
        return np.asarray(result.params), np.asarray(result.cov_robust_bc), bool(result.converged)


def length_ratio(fit: GeeFit, x: int, z: int, conf: float) -> Interval:
    """By how many octaves the budget has to grow with an octave of length for the same score: - beta_z / beta_x.

    The limits are those of the delta method; they are nan, with `status` "slope_not_significant", where the budget's own
    effect is not clearly away from 0. The model's curves end at 0 and 1, those of a task at the floor and at the full
    cache's score: this is a descriptive ratio, biased towards 0, and not the exponent of the collapse model.

    Parameters
    ----------
    x, z : positions of the budget's and of the length's coefficient.
    """
    beta_x, beta_z = float(fit.params[x]), float(fit.params[z])
    slope = fit.interval(x, conf)
    if slope.lo <= 0 <= slope.hi:
        return Interval(-beta_z / beta_x if beta_x else nan, status="slope_not_significant")
    gradient = np.array([beta_z / beta_x**2, -1 / beta_x])
    at = [x, z]
    se = sqrt(float(gradient @ fit.cov[np.ix_(at, at)] @ gradient))
    return fit.wald(-beta_z / beta_x, se, conf)
