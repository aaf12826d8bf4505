//! Two proportions of any size: are hits of the candidate more likely than stable's?
//!
//! For what is not rare (answers above a latency edge, invalid inputs, a class named) the exact
//! two-by-two e-variable uses the misses too, and needs fewer requests than [`super::rare`]. In
//! an interval with `x1` of `n1` (candidate) and `x0` of `n0` (stable), for each odds ratio
//!
//! ```text
//! theta0 = stable's share in the past, as (hits + 1/2)/(n + 1)
//! theta1 = expit(logit(theta0) + ln OR)       theta = (n1 theta1 + n0 theta0)/(n1 + n0)
//! l_OR   = x1 ln(theta1/theta) + (n1-x1) ln((1-theta1)/(1-theta))
//!        + x0 ln(theta0/theta) + (n0-x0) ln((1-theta0)/(1-theta))
//! ```
//!
//! Source: Turner, Ly, Gruenwald (arXiv 2106.02693).
//!
//! Validity: one candidate request that hits with probability `p` contributes
//! `1 + (p - theta)(theta1 - theta)/(theta(1 - theta))` to the expectation of `exp(l)`, a stable
//! one the same with `theta0`; `1 + a <= exp(a)`, and the exponents sum to 0 where both have the
//! same mean `p`, and to less where the candidate's is lower. So it holds for any `p`, for every
//! `theta0` that was chosen before the interval (a bad one costs power, never validity), and for
//! requests of different risk with equal means. It breaks as [`super::rare`] does: by hits that
//! come in clumps, or traffic of another kind.
//!
//! What stable did in the past is forgotten after some hundred thousand requests, as its shares
//! drift over a day. The first requests only teach: with no history there is no guess to bet on,
//! and a bad one would throw away most of the mass that starts first. Stable's past from before
//! the rollout may be shown first, with no candidate.

use serde::{Deserialize, Serialize};

use super::anystart::AnyStart;
use super::{Trials, count};

/// Odds ratios of the candidate against stable, if it is worse.
const ODDS: [f64; 6] = [1.25, 1.5, 2.0, 3.0, 5.0, 10.0];

/// Stable's history is kept in two parts of this many requests; the older one is forgotten when
/// the newer one is full. Enough to know a share of 1 in 10,000.
pub(super) const MEMORY: u64 = 100_000;

/// Nothing is guessed from fewer requests of stable.
pub(super) const LEARNT: u64 = 50;

/// Whether the candidate's share of hits is above stable's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TwoByTwo {
    older: Trials,
    newer: Trials,
    evidence: AnyStart,
}

impl TwoByTwo {
    /// Takes in one interval: what happened to both at the same time.
    pub fn see(&mut self, candidate: Trials, stable: Trials) {
        let past = Trials {
            n: self.older.n + self.newer.n,
            hits: self.older.hits + self.newer.hits,
        };
        if past.n >= LEARNT && candidate.n > 0 && stable.n > 0 {
            let guess = share(past);
            let ratio = |odds| log_ratio(guess, odds, candidate, stable);
            self.evidence.see(&ODDS.map(ratio));
        }
        self.newer.n += stable.n;
        self.newer.hits += stable.hits;
        if self.newer.n >= MEMORY {
            self.older = std::mem::take(&mut self.newer);
        }
    }

    /// `ln E` against "hits of the candidate are at most as likely as stable's". Reject once it
    /// reaches `ln(1/alpha)`.
    #[must_use]
    pub fn log_e(&self) -> f64 {
        self.evidence.log_e()
    }
}

/// The share of hits, as far from 0 and 1 as the number of tries leaves open.
pub(super) fn share(trials: Trials) -> f64 {
    (count(trials.hits) + 0.5) / (count(trials.n) + 1.0)
}

/// How much better "stable hits with `theta0`, the candidate with `odds` times its odds" explains
/// an interval than one share for both does.
pub(super) fn log_ratio(theta0: f64, odds: f64, candidate: Trials, stable: Trials) -> f64 {
    let (n1, n0) = (count(candidate.n), count(stable.n));
    let (x1, x0) = (count(candidate.hits), count(stable.hits));
    let theta1 = odds * theta0 / (1.0 + (odds - 1.0) * theta0);
    let theta = (n1 * theta1 + n0 * theta0) / (n1 + n0);
    let of = |x: f64, n: f64, guess: f64| {
        x * (guess / theta).ln() + (n - x) * ((theta - guess) / (1.0 - theta)).ln_1p()
    };
    of(x1, n1, theta1) + of(x0, n0, theta0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::draws::{Draws, mean_over_outcomes, summary};

    #[test]
    fn the_null_holds_for_any_share_and_any_guess() {
        for p in [0.02, 0.5, 0.97] {
            for guess in [0.001, 0.1, 0.5, 0.9] {
                for odds in ODDS {
                    let log = |x1, x0| log_ratio(guess, odds, x1, x0);
                    for candidate in [p, p / 2.0] {
                        let mean = mean_over_outcomes(3, 7, candidate, p, log);
                        assert!(mean <= 1.0 + 1e-12, "{p} {guess} {odds}: {mean}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_share_of_a_third_that_becomes_half_is_found() {
        let run = |seed| {
            let mut draws = Draws::seeded(seed);
            let mut test = TwoByTwo::default();
            (1..)
                .find(|_| {
                    test.see(draws.trials(1, 0.5), draws.trials(9, 0.33));
                    test.log_e() >= 1_000_f64.ln()
                })
                .unwrap()
        };
        let (median, _) = summary((0..101).map(run).collect());
        assert!((100..250).contains(&median), "{median}");
    }

    #[test]
    fn equal_versions_raise_no_more_false_alarms_than_promised() {
        let alarms = (0..200)
            .filter(|seed| {
                let mut draws = Draws::seeded(*seed);
                let mut test = TwoByTwo::default();
                (0..300).any(|_| {
                    test.see(draws.trials(5, 0.3), draws.trials(20, 0.3));
                    test.log_e() >= 20_f64.ln()
                })
            })
            .count();
        assert!(alarms <= 10, "{alarms} of 200 at 5 %");
    }

    #[test]
    fn without_history_or_without_one_side_nothing_is_said() {
        let mut test = TwoByTwo::default();
        let (none, some) = (Trials::default(), Trials { n: 9, hits: 9 });
        test.see(some, none);
        assert_eq!(test, TwoByTwo::default());
        test.see(some, Trials { n: 49, hits: 0 });
        test.see(some, Trials { n: 1, hits: 0 });
        test.see(none, some);
        assert!(test.log_e().abs() < 1e-12);
        test.see(some, Trials { n: 9, hits: 0 });
        assert!(test.log_e() > 1.0);
    }

    #[test]
    fn the_far_past_is_forgotten() {
        let mut test = TwoByTwo::default();
        for _ in 0..3 {
            test.see(Trials::default(), Trials { n: MEMORY, hits: 7 });
        }
        assert_eq!((test.older.n, test.newer.n), (MEMORY, 0));
    }
}
