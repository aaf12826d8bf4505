//! Error rates: is the candidate's more than `1 + margin` times stable's?
//!
//! In an interval, let the candidate have `x1` failures in `n1` requests and stable `x0` in `n0`;
//! `rho = n1/(n1+n0)`, `S = x1+x0`, `r0 = 1+margin`. For each ratio `R` of a grid
//!
//! ```text
//! l_R = x1 ln R + S ln((1 - rho + rho r0) / (1 - rho + rho r0 R))
//! ```
//!
//! is how much better "candidate = R r0 stable" explains who failed than "candidate = r0 stable"
//! does: given S failures, each is the candidate's with probability
//! `rho r0 / (1 - rho + rho r0)`. Stable's own rate drops out, so it need not be known and may
//! drift from interval to interval; only what happened at the same time is compared. Several
//! ratios, because nobody knows in advance how broken a candidate is; they share the mass
//! evenly, and the same with `R < 1` proves the opposite. (Of grids of four to seven ratios,
//! all were within 8 % of each other from x1.5 to x50; without a ratio below 1.4, a candidate that
//! is worse by a quarter is found late or never.)
//!
//! Source: the conditional binomial e-process; Lindon & Malek (NeurIPS 2022, arXiv 2011.03567)
//! give its relative with a Beta prior.
//!
//! Validity does not need rare events. Let `c = (1 - rho + rho r0) / (1 - rho + rho r0 R)`. A
//! request that fails with probability `p` contributes `1 + p(Rc - 1)` (candidate) or
//! `1 + p(c - 1)` (stable) to the expectation of `exp(l_R)`, which is at most `exp` of the sum of
//! `p(Rc - 1)` and `p(c - 1)`. At equality of the null that sum is 0; and it grows with the
//! candidate's rate for `R > 1`, and falls for `R < 1`. So the bound holds for any rates, and for
//! requests of different risk, as long as the *mean* rates of an interval obey the null. What
//! breaks it: failures that come in clumps within one version (count keys that fail, not
//! retries), and candidate traffic that differs in kind from stable's. At rates of tens of
//! percent it is valid, but slower than [`super::exact`].
//!
//! Evidence of being worse may start at any interval ([`super::anystart`]); a proof of not being
//! worse rests on everything seen, since a candidate must not get past a gate on its best hour.

use serde::{Deserialize, Serialize};

use super::anystart::{AnyStart, ln_mean};
use super::{Trials, count};

/// How many times more than allowed the candidate may fail, if it is worse. Closer to each other
/// around 5, where a failure more or less counts most.
const WORSE: [f64; 6] = [1.3, 2.0, 4.0, 6.0, 12.0, 50.0];

/// How many times less than allowed it may fail, if it is not worse.
const NOT_WORSE: [f64; 5] = [0.8, 0.67, 0.5, 0.33, 0.2];

/// Both tests of an error rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RareEvents {
    /// `1 + margin`.
    allowed: f64,
    worse: AnyStart,
    /// Plain log products, one for each of [`NOT_WORSE`].
    not_worse: [f64; NOT_WORSE.len()],
}

impl RareEvents {
    /// `margin` is the part of stable's rate that the candidate may have on top: with 0.2, up to
    /// 1.2 times stable's rate counts as not worse. Finite, above -1.
    #[must_use]
    pub const fn new(margin: f64) -> Self {
        Self {
            allowed: 1.0 + margin,
            worse: AnyStart::new(),
            not_worse: [0.0; NOT_WORSE.len()],
        }
    }

    /// Takes in one interval: what happened to both at the same time.
    pub fn see(&mut self, candidate: Trials, stable: Trials) {
        if candidate.hits + stable.hits == 0 || candidate.n == 0 || stable.n == 0 {
            return; // every ratio would be 0
        }
        let ratio = |r| log_ratio(self.allowed, r, candidate, stable);
        let worse = WORSE.map(ratio);
        let not_worse = NOT_WORSE.map(ratio);
        self.worse.see(&worse);
        for (sum, ratio) in self.not_worse.iter_mut().zip(not_worse) {
            *sum += ratio;
        }
    }

    /// `ln E` against "the candidate fails at most `1 + margin` times as often as stable".
    /// `Fail` once it reaches `ln(1/alpha)`.
    #[must_use]
    pub fn log_e_worse(&self) -> f64 {
        self.worse.log_e()
    }

    /// `ln E` against "the candidate fails at least `1 + margin` times as often as stable".
    /// `Pass` once it reaches `ln(1/alpha)`. With a margin of 0 an equal candidate never does.
    #[must_use]
    pub fn log_e_not_worse(&self) -> f64 {
        ln_mean(&self.not_worse)
    }
}

/// How much better "candidate = `ratio` x `allowed` x stable" explains whose the failures are
/// than "candidate = `allowed` x stable".
fn log_ratio(allowed: f64, ratio: f64, candidate: Trials, stable: Trials) -> f64 {
    let rho = count(candidate.n) / (count(candidate.n) + count(stable.n));
    let failures = count(candidate.hits) + count(stable.hits);
    let at = |r: f64| (rho * (r - 1.0)).ln_1p();
    count(candidate.hits) * ratio.ln() + failures * (at(allowed) - at(allowed * ratio))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::draws::{Draws, mean_over_outcomes, summary};

    /// Candidate requests until `Fail` at alpha .001, at a share of 10 %.
    fn detection(margin: f64, stable: f64, candidate: f64, runs: u64) -> (u64, u64) {
        let run = |seed| {
            let mut draws = Draws::seeded(seed);
            let mut test = RareEvents::new(margin);
            (1..)
                .find(|_| {
                    test.see(draws.trials(1, candidate), draws.trials(9, stable));
                    test.log_e_worse() >= 1_000_f64.ln()
                })
                .unwrap()
        };
        summary((0..runs).map(run).collect())
    }

    #[test]
    fn what_breaks_is_found_about_as_fast_as_a_test_without_late_starts_would() {
        // At most 1.15 times the median of the same test with one start only.
        for (stable, candidate, most) in [
            (0.01, 0.5, 11),
            (0.01, 0.1, 83),
            (0.01, 0.05, 254),
            (0.001, 0.01, 874),
        ] {
            let (median, _) = detection(0.0, stable, candidate, 101);
            assert!(median <= most, "{stable} -> {candidate}: {median}");
        }
    }

    #[test]
    fn equal_versions_raise_no_more_false_alarms_than_promised() {
        let alarms = (0..200)
            .filter(|seed| {
                let mut draws = Draws::seeded(*seed);
                let mut test = RareEvents::new(0.0);
                (0..300).any(|_| {
                    test.see(draws.trials(5, 0.05), draws.trials(20, 0.05));
                    test.log_e_worse() >= 20_f64.ln()
                })
            })
            .count();
        assert!(alarms <= 10, "{alarms} of 200 at 5 %");
    }

    #[test]
    fn an_equal_candidate_is_proven_not_worse_and_a_worse_one_is_not() {
        let proven = |candidate| {
            let mut draws = Draws::seeded(5);
            let mut test = RareEvents::new(1.0);
            (1..200).find(|_| {
                test.see(draws.trials(100, candidate), draws.trials(900, 0.02));
                test.log_e_not_worse() >= 20_f64.ln()
            })
        };
        assert!(proven(0.02).is_some_and(|t| t < 20), "{:?}", proven(0.02));
        assert_eq!(proven(0.04), None);
    }

    /// Both tests, for rates far from rare and versions at the very edge of the null: the mean of
    /// `E` over everything that can happen in two intervals is 1 at most.
    #[test]
    fn the_null_holds_for_rates_that_are_not_rare() {
        for (allowed, stable) in [(1.0, 0.5), (1.2, 0.4), (2.0, 0.05), (2.0, 0.5)] {
            for ratio in WORSE.into_iter().chain(NOT_WORSE) {
                let mean = mean_over_outcomes(3, 4, allowed * stable, stable, |x1, x0| {
                    log_ratio(allowed, ratio, x1, x0)
                });
                assert!(mean <= 1.0 + 1e-12, "{allowed} {stable} {ratio}: {mean}");
            }
        }
    }

    #[test]
    fn without_failures_or_without_one_side_nothing_is_said() {
        let mut test = RareEvents::new(0.2);
        let (none, some) = (Trials::default(), Trials { n: 9, hits: 3 });
        for (candidate, stable) in [(none, none), (some, none), (none, some)] {
            test.see(candidate, stable);
        }
        test.see(Trials { n: 5, hits: 0 }, Trials { n: 50, hits: 0 });
        assert_eq!(test, RareEvents::new(0.2));
        assert!(test.log_e_worse().abs() < 1e-12 && test.log_e_not_worse().abs() < 1e-12);
    }
}
