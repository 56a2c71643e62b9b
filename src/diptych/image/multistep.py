"""Samplers that remember: the next step uses what the denoiser said at the last visits, at no further call.

DPM-Solver++ and UniPC work in lambda = log(alpha / sigma), DEIS on the predicted noise over rho = sigma / alpha, LMS,
iPNDM and PLMS on slopes over the path's coordinate. Each starts with a first-order step where nothing is to be
remembered, which includes pure noise, and most end with one where the step leads to the clean picture.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from diptych.image.moves import Visit, first_order
from diptych.image.path import Node
from diptych.image.single_step import heun

# Adams-Bashforth, newest first, over equal steps.
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def dpmpp_2m(visits: Sequence[Visit], ahead: Sequence[Node], noise: Tensor, *, eta: float, kind: str) -> Tensor:
    """DPM-Solver++ (2M) (Lu et al. 2022, alg. 2): the denoised picture is taken as a line in lambda through the last
    two visits. With eta > 0 the SDE's: the mean falls by exp(-eta h) more, and noise makes up for it.

    Args:
        kind: how the line's slope counts, "midpoint" (as at the middle of the step) or "heun" (integrated).
    """
    last, there = visits[-1], ahead[0]
    if there.sigma == 0 or last.node.alpha == 0 or (len(visits) < 2 and eta == 0):
        return _first(last, there, noise, eta)
    step = there.lambda_ - last.node.lambda_
    decay = step + eta * step
    ahead_of = last.denoised
    if len(visits) > 1:
        r = (last.node.lambda_ - visits[-2].node.lambda_) / step
        weight = 1 / (2 * r) if kind == "midpoint" else (1 + math.expm1(-decay) / decay) / -math.expm1(-decay) / r
        ahead_of = (1 + weight) * last.denoised - weight * visits[-2].denoised
    x = there.sigma / last.node.sigma * math.exp(-eta * step) * last.x - there.alpha * math.expm1(-decay) * ahead_of
    return x + there.sigma * math.sqrt(-math.expm1(-2 * eta * step)) * noise if eta else x


def dpmpp_3m(visits: Sequence[Visit], ahead: Sequence[Node], noise: Tensor, *, eta: float) -> Tensor:
    """DPM-Solver++ (3M) SDE: the denoised picture bends in lambda as through the last three visits.

    As published and as everyone has it (Lu et al. 2022, app. B), the square of the parabola counts half of what its
    integral is, 1/2 - phi_2 / h and not 1 - 2 phi_2 / h, so the order is 2, not 3. Kept: pictures are made by this one.
    """
    last, there = visits[-1], ahead[0]
    if there.sigma == 0 or last.node.alpha == 0:
        return _first(last, there, noise, eta)
    visits = [visit for visit in visits if visit.node.alpha > 0][-3:]
    step = there.lambda_ - last.node.lambda_
    decay = step + eta * step
    x = (
        there.sigma / last.node.sigma * math.exp(-eta * step) * last.x
        - there.alpha * math.expm1(-decay) * last.denoised
    )
    widths = [(after.node.lambda_ - before.node.lambda_) / step for before, after in pairwise(visits)][::-1]
    rises = [
        (after.denoised - before.denoised) / width
        for (before, after), width in zip(list(pairwise(visits))[::-1], widths, strict=True)
    ]
    second = math.expm1(-decay) / decay + 1  # phi_2
    if len(rises) == 1:
        x = x + there.alpha * second * rises[0]
    elif len(rises) == 2:
        bend = (rises[0] - rises[1]) / (widths[0] + widths[1])
        x = x + there.alpha * (second * (rises[0] + widths[0] * bend) - (second / decay - 0.5) * bend)
    return x + there.sigma * math.sqrt(-math.expm1(-2 * eta * step)) * noise if eta else x


def lms(visits: Sequence[Visit], ahead: Sequence[Node], noise: Tensor, *, order: int) -> Tensor:
    """Linear multistep: the polynomial through the last slopes, integrated over the step (k-diffusion's LMS; Hairer et
    al. 1993, sec. III.1)."""
    last, there = visits[-1], ahead[0]
    known = [visit for visit in visits if visit.node.scale > 0][-order:]
    if last.node.scale == 0:
        return first_order(last.x, last.denoised, last.node, there)
    here, goal = last.node.coordinate, there.coordinate
    knots = np.array([visit.node.coordinate for visit in known])
    points, weights = np.polynomial.legendre.leggauss(2)  # exact for the cubic
    at = here + (points + 1) / 2 * (goal - here)
    areas = [(goal - here) / 2 * (weights * _lagrange(at, knots, k)).sum() for k in range(len(known))]
    return _moved(last, there, sum(float(area) * visit.slope for area, visit in zip(areas, known, strict=True)))


def ipndm(visits: Sequence[Visit], ahead: Sequence[Node], noise: Tensor, *, order: int) -> Tensor:
    """iPNDM (Zhang & Chen 2023, app. H.2; Liu et al. 2022, eq. 12): Adams-Bashforth on the slopes as if steps were
    equal."""
    last, there = visits[-1], ahead[0]
    if last.node.scale == 0:
        return first_order(last.x, last.denoised, last.node, there)
    known = [visit for visit in visits if visit.node.scale > 0][-order:][::-1]
    width = there.coordinate - last.node.coordinate
    weights = ADAMS_BASHFORTH[len(known) - 1]
    return _moved(last, there, sum(width * weight * visit.slope for weight, visit in zip(weights, known, strict=True)))


def plms(visits: Sequence[Visit], ahead: Sequence[Node], noise: Tensor, *, order: int) -> Tensor:
    """PLMS (Liu et al. 2022, alg. 2, without its Runge-Kutta start): iPNDM whose first step is looked at again from its
    end and taken with the mean of both slopes."""
    last, there = visits[-1], ahead[0]
    if last.node is there:
        return heun(visits, ahead, noise)
    arrived = [visit for visit, after in pairwise(visits) if visit.node is not after.node]
    return ipndm([*arrived, last], ahead, noise, order=order)


def deis(visits: Sequence[Visit], ahead: Sequence[Node], noise: Tensor, *, order: int) -> Tensor:
    """DEIS, the log-rho kind (Zhang & Chen 2023, eq. 15 and app. B): the polynomial in log(sigma / alpha) through the
    last predictions of the noise, integrated over sigma / alpha."""
    last, there = visits[-1], ahead[0]
    known = [visit for visit in visits if visit.node.alpha > 0][-min(order, len(ahead)) :]
    if there.sigma == 0 or last.node.alpha == 0:
        return first_order(last.x, last.denoised, last.node, there)
    knots = np.array([-visit.node.lambda_ for visit in known])
    start, end = -last.node.lambda_, -there.lambda_
    x = last.x / last.node.alpha
    for k, visit in enumerate(known):
        others = np.delete(knots, k)
        # Lagrange's polynomial in powers of log(rho), whose integral over rho is rho times a sum of derivatives.
        powers = np.polynomial.Polynomial.fromroots(others) if len(others) else np.polynomial.Polynomial([1.0])
        whole = sum(((-1) ** i * powers.deriv(i) for i in range(1, len(known))), powers)
        area = math.exp(end) * whole(end) - math.exp(start) * whole(start)
        x = x + float(area / np.prod(knots[k] - others)) * visit.noise
    return there.alpha * x


def unipc(visits: Sequence[Visit], ahead: Sequence[Node], noise: Tensor, *, order: int, variant: str) -> Tensor:
    """UniPC (Zhao et al. 2023, alg. 2, predicting the picture): a multistep predictor, and before it the corrector,
    which takes the step to `here` again, now that the denoiser was asked there.

    The corrected picture differs from the visited one by terms of the denoised pictures alone, since both take the same
    step from the same place; so nothing but the visits needs to be kept.

    Args:
        variant: B(h) of eq. 8, "bh1" is h and "bh2" is e^h - 1.
    """
    last, there = visits[-1], ahead[0]
    known = [visit for visit in visits if visit.node.alpha > 0][::-1]  # newest first
    if last.node.alpha == 0:
        return first_order(last.x, last.denoised, last.node, there)
    x = last.x
    if len(known) > 1:
        used = min(order, len(known) - 1, len(ahead) + 1)
        whole, before = last.node, known[1 : 1 + used]
        predicted = _residue(before, whole, variant)
        corrected = _residue(before, whole, variant, arrived=last)
        x = x - whole.alpha * (corrected - predicted)
    used = min(order, len(known), len(ahead))
    x = first_order(x, last.denoised, last.node, there)
    return x if there.sigma == 0 else x - there.alpha * _residue(known[:used], there, variant)


def _residue(known: Sequence[Visit], there: Node, variant: str, arrived: Visit | None = None) -> Tensor | float:
    """B(h) times the weighted differences of denoised pictures on the step from known[0] to `there` (eq. 3 and 9)."""
    last = known[0]
    h = -(there.lambda_ - last.node.lambda_)
    scale = h if variant == "bh1" else math.expm1(h)
    others = [*known[1:], *([arrived] if arrived else [])]
    if not others:
        return 0.0
    ratios = np.array([(visit.node.lambda_ - last.node.lambda_) / -h for visit in others])
    phi, factorial, right = math.expm1(h) / h - 1, 1, []
    for i in range(1, len(others) + 1):
        right.append(phi * factorial / scale)
        factorial *= i + 1
        phi = phi / h - 1 / factorial
    # With one unknown the paper takes 1/2, which is right to the order that is wanted (app. F).
    weights = np.array([0.5]) if len(others) == 1 else np.linalg.solve(np.vander(ratios, increasing=True).T, right)
    parts = zip(weights, ratios, others, strict=True)
    return scale * sum(float(weight / ratio) * (visit.denoised - last.denoised) for weight, ratio, visit in parts)


def _first(last: Visit, there: Node, noise: Tensor, eta: float) -> Tensor:
    """The SDE's step with the denoised picture as it is; from pure noise, which any eta > 0 forgets."""
    x = first_order(last.x, last.denoised, last.node, there)
    if there.sigma == 0 or eta == 0:
        return x
    return there.alpha * last.denoised + there.sigma * noise


def _moved(last: Visit, there: Node, change: Tensor | float) -> Tensor:
    return there.scale * (last.x / last.node.scale + change)


def _lagrange(at: np.ndarray, knots: np.ndarray, k: int) -> np.ndarray:
    """The polynomial that is 1 at knot k and 0 at the others."""
    value = np.ones_like(at)
    for other in np.delete(knots, k):
        value = value * (at - other) / (knots[k] - other)
    return value
