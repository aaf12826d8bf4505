"""Writes the figures that the judge's mathematics is tested against.

    python -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python make.py

What the Rust code does by recursions in logarithms, closed forms and bisection is done here
from the definitions: sums over starts of plain products of binomial probabilities with 50
digits (mpmath), distributions of scipy, raw samples instead of counts, scikit-learn for scores
of labels, savvi for the confidence sequence. The output depends on the seed below alone.
"""

import json
from pathlib import Path

import mpmath as mp
import numpy as np
from savvi.multinomial import Multinomial
from scipy import special, stats
from sklearn import metrics

mp.mp.dps = 50
random = np.random.default_rng(20260101)


def write(name, cases):
    path = Path(__file__).parent / f"{name}.json"
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(f"[\n{lines}\n]\n")


def ints(array):
    return [int(x) for x in array]


# --- when evidence starts -------------------------------------------------------------------


def waiting(t):
    """Mass that has not started after t intervals that said something."""
    return mp.mpf(1) if t == 0 else mp.mpf("0.1") / mp.log(mp.e + t - 1)


def mixture(factors):
    """Mean over hypotheses of the sum over starts of the product from there on. `factors` has a
    row for each interval, with a factor for each hypothesis."""
    total = waiting(len(factors))
    for start in range(len(factors)):
        for h in range(len(factors[0])):
            product = mp.fprod(row[h] for row in factors[start:])
            total += (waiting(start) - waiting(start + 1)) * product / len(factors[0])
    return total


def binomial(hits, n, p):
    return mp.binomial(n, hits) * p**hits * (1 - p) ** (n - hits)


# --- E1: rare events ------------------------------------------------------------------------


def rare():
    worse = [1.3, 2.0, 4.0, 6.0, 12.0, 50.0]
    not_worse = [0.8, 0.67, 0.5, 0.33, 0.2]
    cases = []
    for margin, p1, p0 in [(0.0, 0.02, 0.02), (0.2, 0.1, 0.02), (1.0, 0.01, 0.01), (0.5, 0.5, 0.3)]:
        candidate, stable, up, down = [], [], [], []
        for _ in range(25):
            n1, n0 = ints(random.integers(0, 40, 2) * [1, 6])
            x1, x0 = ints(random.binomial([n1, n0], [p1, p0]))
            candidate.append([n1, x1])
            stable.append([n0, x0])
            if x1 + x0 == 0 or n1 == 0 or n0 == 0:
                continue

            def whose(ratio):  # the chance that a failure is the candidate's
                odds = mp.mpf(n1) / n0 * (1 + mp.mpf(margin)) * ratio
                return odds / (1 + odds)

            null = binomial(x1, x1 + x0, whose(1))
            up.append([binomial(x1, x1 + x0, whose(mp.mpf(r))) / null for r in worse])
            down.append([binomial(x1, x1 + x0, whose(mp.mpf(r))) / null for r in not_worse])
        products = [mp.fprod(row[h] for row in down) for h in range(len(not_worse))]
        cases.append(
            {
                "margin": margin,
                "candidate": candidate,
                "stable": stable,
                "log_e_worse": float(mp.log(mixture(up))),
                "log_e_not_worse": float(mp.log(sum(products) / len(products))),
            }
        )
    return cases


# --- E2: two shares -------------------------------------------------------------------------


def two_by_two(theta0, odds, n1, x1, n0, x0):
    """Likelihood of two shares against that of their mean share."""
    theta0 = mp.mpf(theta0)
    theta1 = 1 / (1 + (1 - theta0) / (theta0 * mp.mpf(odds)))
    both = (n1 * theta1 + n0 * theta0) / (n1 + n0)
    return (binomial(x1, n1, theta1) * binomial(x0, n0, theta0)) / (
        binomial(x1, n1, both) * binomial(x0, n0, both)
    )


def guess(hits, n):
    return (mp.mpf(hits) + mp.mpf(1) / 2) / (n + 1)


def exact():
    cases = []
    for p1, p0 in [(0.3, 0.3), (0.6, 0.4), (0.02, 0.001), (0.99, 0.97)]:
        candidate, stable, factors, hits, n = [], [], [], 0, 0
        for _ in range(25):
            n1, n0 = ints(random.integers(0, 20, 2) * [1, 5])
            x1, x0 = ints(random.binomial([n1, n0], [p1, p0]))
            candidate.append([n1, x1])
            stable.append([n0, x0])
            if n >= 50 and n1 > 0 and n0 > 0:
                factors.append(
                    [
                        two_by_two(guess(hits, n), odds, n1, x1, n0, x0)
                        for odds in [1.25, 1.5, 2.0, 3.0, 5.0, 10.0]
                    ]
                )
            hits, n = hits + x0, n + n0
        cases.append(
            {
                "candidate": candidate,
                "stable": stable,
                "log_e": float(mp.log(mixture(factors))),
            }
        )
    return cases


# --- E3: latency ----------------------------------------------------------------------------

EDGES = 1000.0 * 1.2 ** (np.arange(201) / 2)  # ns; the last bin has no upper edge


def slower(margin, floor, looks):
    """From raw latencies (ns): a list of (candidate, stable) for each interval."""
    odds_ratios = [1.7, 4.0, 15.0]
    # The floor counts as the edge nearest to it, by ratio.
    nearest = [EDGES[np.argmin(np.abs(np.log(EDGES / (e + floor))))] for e in EDGES]
    allowed = np.maximum(EDGES * (1 + margin), nearest)
    # For each edge of stable, the first edge at or above what is allowed (a hair of slack, as
    # 1.2 is not a binary fraction).
    reached = [np.flatnonzero(EDGES * (1 + 1e-9) >= a) for a in allowed]
    partner = [int(r[0]) if len(r) else None for r in reached]
    past, intervals = np.array([]), []
    for candidate, stable in looks:
        if len(past) >= 50 and len(candidate) and len(stable):
            share = [guess(int((past > e).sum()), len(past)) for e in EDGES]
            first = next(k for k in range(201) if share[k] <= 0.9)
            last = next(k for k in range(201) if not (past > EDGES[k]).any())
            used = [
                k
                for k in range(min(first, last), min(last + 6, 200) + 1)
                if partner[k] is not None and (k == 200 or partner[k] != partner[k + 1])
            ]
            factors = {
                (k, odds): two_by_two(
                    share[k],
                    odds,
                    len(candidate),
                    int((candidate > EDGES[partner[k]]).sum()),
                    len(stable),
                    int((stable > EDGES[k]).sum()),
                )
                for k in range(201)
                if partner[k] is not None
                for odds in odds_ratios
            }
            intervals.append((used, factors))
        past = np.concatenate([past, stable])
    total, by_edge = waiting(len(intervals)), {}
    for start, (used, _) in enumerate(intervals):
        mass = (waiting(start) - waiting(start + 1)) / (len(used) * len(odds_ratios))
        for k in used:
            for odds in odds_ratios:
                product = mp.fprod(factors[k, odds] for _, factors in intervals[start:])
                by_edge[k] = by_edge.get(k, 0) + mass * product
    total += sum(by_edge.values())
    loudest = max(by_edge, key=by_edge.get)
    return float(mp.log(total)), loudest, float(mp.log(by_edge[loudest]))


def latency():
    cases = []
    for margin, floor, sigma, factor in [
        (0.0, 0, 0.6, 1.0),
        (0.2, 0, 0.6, 1.5),
        (0.2, 1_000_000, 0.3, 1.3),
        (0.25, 2_000_000, 0.05, 2.0),
    ]:
        looks = []
        for look in range(12):
            n1, n0 = (0, 60) if look == 4 else (random.integers(1, 15), random.integers(30, 90))
            looks.append(
                (
                    np.round(5e6 * factor * np.exp(sigma * random.standard_normal(n1))),
                    np.round(5e6 * np.exp(sigma * random.standard_normal(n0))),
                )
            )
        log_e, edge, evidence = slower(margin, floor, looks)
        cases.append(
            {
                "margin": margin,
                "floor_ns": floor,
                "candidate_ns": [ints(c) for c, _ in looks],
                "stable_ns": [ints(s) for _, s in looks],
                "log_e": log_e,
                "loudest_edge": edge,
                "loudest_log_e": evidence,
            }
        )
    return cases


# --- E4: agreement --------------------------------------------------------------------------


def agreement():
    cases = []
    for agreed, compared, alpha in [
        (0, 50, 0.01),
        (1, 50, 0.05),
        (50, 50, 0.01),
        (980, 1000, 0.01),
        (7, 11, 0.001),
        (999_000, 1_000_000, 0.001),
        (123_456, 400_000, 0.05),
    ]:

        def excess(p):  # the mixture's likelihood over that of p, less the limit
            mixed = mp.beta(0.5 + agreed, 0.5 + compared - agreed) / mp.beta(0.5, 0.5)
            seen = mp.mpf(p) ** agreed * (1 - mp.mpf(p)) ** (compared - agreed)
            return mp.log(mixed / seen) - mp.log(1 / mp.mpf(alpha))

        def end(edge):  # between the edge and the share that was seen
            bracket = (mp.mpf(edge), mp.mpf(agreed) / compared)
            return mp.findroot(excess, bracket, solver="bisect", tol=1e-40, maxsteps=400)

        lower = 0.0 if agreed == 0 else float(end("1e-30"))
        upper = 1.0 if agreed == compared else float(end(1 - mp.mpf("1e-30")))
        check_with_savvi(agreed, compared, alpha, lower, upper)
        cases.append(
            {
                "agreed": agreed,
                "compared": compared,
                "alpha": alpha,
                "lower": lower,
                "upper": upper,
            }
        )
    return cases


def check_with_savvi(agreed, compared, alpha, lower, upper):
    if compared > 1000:
        return  # its solver of convex problems is not made for large counts
    test = Multinomial(alpha, np.array([0.5, 0.5]), k=1)
    test.update(np.array([agreed, compared - agreed]))
    low, high = test.calculate_conf_int()[0]
    assert abs(low - lower) < 1e-4 and abs(high - upper) < 1e-4, (low, lower, high, upper)
    ratio = stats.betabinom.pmf(agreed, compared, 0.5, 0.5) / stats.binom.pmf(agreed, compared, 0.5)
    assert np.isclose(test.odds, ratio)


# --- fixed samples --------------------------------------------------------------------------


def drift():
    cases = []
    for bins, n, m in [(10, 1000, 10000), (20, 300, 5000), (3, 50, 40)]:
        shares = random.dirichlet(np.ones(bins) * 3, 2)
        candidate, stable = random.multinomial(n, shares[0]), random.multinomial(m, shares[1])
        keep = (candidate + stable) > 0
        a, b = candidate[keep] + 0.5, stable[keep] + 0.5
        a, b = a / a.sum(), b / b.sum()
        psi = special.rel_entr(a, b).sum() + special.rel_entr(b, a).sum()
        null = (1 / n + 1 / m) * stats.chi2.isf(0.01, keep.sum() - 1)
        cases.append(
            {
                "candidate": ints(candidate),
                "stable": ints(stable),
                "alpha": 0.01,
                "psi": float(psi),
                "null": float(null),
            }
        )
    return cases


def labels():
    cases = []
    for classes, n, right in [(2, 200, 0.9), (5, 1000, 0.6), (12, 40, 0.3)]:
        names = np.array([f"class {i}" for i in range(classes)])
        actual = random.choice(names, n, p=random.dirichlet(np.ones(classes)))
        predicted = np.where(random.random(n) < right, actual, random.choice(names, n))
        confidence = random.random(n) ** 0.5
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            actual, predicted, average="macro", zero_division=0
        )
        bin_of = np.minimum((confidence * 15).astype(int), 14)
        plain, square, several = 0.0, 0.0, np.bincount(bin_of)[bin_of] > 1
        for b in np.unique(bin_of):
            hit, sure = (actual == predicted)[bin_of == b], confidence[bin_of == b]
            plain += len(hit) / n * abs(hit.mean() - sure.mean())
            if len(hit) > 1:
                chance = hit.var(ddof=1) / len(hit)
                square += len(hit) / several.sum() * ((hit.mean() - sure.mean()) ** 2 - chance)
        cases.append(
            {
                "classes": {
                    str(name): {
                        "predicted": int((predicted == name).sum()),
                        "actual": int((actual == name).sum()),
                        "correct": int(((predicted == name) & (actual == name)).sum()),
                    }
                    for name in names
                },
                "bins": [
                    {
                        "count": int((bin_of == b).sum()),
                        "confidence": float(confidence[bin_of == b].sum()),
                        "correct": int((actual == predicted)[bin_of == b].sum()),
                    }
                    for b in range(15)
                ],
                "accuracy": float(metrics.accuracy_score(actual, predicted)),
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "plain": float(plain),
                "debiased_square": float(square),
            }
        )
    return cases


def kpi():
    cases = []
    for alpha, sharpest_at, n1, n0, mean in [
        (0.05, 1000, 120, 900, 9.0),
        (0.001, 5000, 2000, 300, -4.0),
    ]:
        candidate = random.exponential(2.0, n1) + mean
        stable = random.exponential(2.0, n0) + mean + 1.0
        n = n1 + n0
        rho = np.sqrt((-2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)) / sharpest_at)

        def half(variance):  # of one outcome, as in the paper; the mean's is variance / n
            inner = 2 * (n * rho**2 + 1) / (n**2 * rho**2) * np.log(np.sqrt(n * rho**2 + 1) / alpha)
            return np.sqrt(variance) * np.sqrt(inner)

        v1, v0 = candidate.var(ddof=1) / n1, stable.var(ddof=1) / n0
        m1, m0 = candidate.mean(), stable.mean()

        def excess(change):  # |mean1 - r mean0| less what it may be, with r = 1 + change for m0 > 0
            r = 1 + change * np.sign(m0)
            return float(abs(m1 - r * m0) - half(n * (v1 + r**2 * v0)))

        seen = (m1 - m0) / abs(m0)
        ends = [
            float(
                mp.findroot(excess, (seen, seen + step), solver="anderson", tol=1e-28, verify=False)
            )
            for step in (-0.9, 0.9)
        ]
        assert all(abs(excess(end)) < 1e-12 for end in ends)
        cases.append(
            {
                "alpha": alpha,
                "sharpest_at": sharpest_at,
                "candidate": {
                    "count": n1,
                    "sum": float(candidate.sum()),
                    "squares": float((candidate**2).sum()),
                },
                "stable": {
                    "count": n0,
                    "sum": float(stable.sum()),
                    "squares": float((stable**2).sum()),
                },
                "difference": [
                    float(m1 - m0 - half(n * (v1 + v0))),
                    float(m1 - m0 + half(n * (v1 + v0))),
                ],
                "relative_change": [float(min(ends)), float(max(ends))],
            }
        )
    return cases


if __name__ == "__main__":
    for make in (rare, exact, latency, agreement, drift, labels, kpi):
        write(make.__name__, make())
