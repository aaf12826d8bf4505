//! A share and its limit: is it proven that more than the limit are hits?
//!
//! For limits that stand by themselves (at most 1 % of requests fail, at most 5 % are slower
//! than 120 ms), where there is no stable to compare with. In an interval with `x` hits of `n`,
//! for each odds ratio of a grid
//!
//! ```text
//! theta0 = the limit      theta1 = expit(logit(theta0) + ln OR)
//! l_OR   = x ln(theta1/theta0) + (n-x) ln((1-theta1)/(1-theta0))
//! ```
//!
//! A hit of probability `p` contributes `1 + (p - theta0)(theta1 - theta0)/(theta0(1 - theta0))`
//! to the expectation of `exp(l)`: at most 1 as long as `p` is at most the limit, whatever it was
//! and however it drifts below it. So this is an e-process for every history in which the mean of
//! each interval kept the limit; it breaks by hits that come in clumps.
//!
//! Source: Wald's sequential probability ratio, mixed over alternatives (Robbins) and over
//! starts ([`super::anystart`]): a breach after good hours is found at once.

use serde::{Deserialize, Serialize};

use super::anystart::AnyStart;
use super::{Trials, count};

/// Odds ratios against the limit, if it is broken.
const ODDS: [f64; 5] = [1.3, 2.0, 4.0, 10.0, 40.0];

/// Limits closer to 0 or 1 are not told apart from them: one hit may always be chance.
const CLOSEST: f64 = 1e-6;

/// The test of one limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitTest {
    limit: f64,
    evidence: AnyStart,
}

impl LimitTest {
    /// `limit`: the largest share that is allowed, 0 to 1.
    #[must_use]
    pub const fn new(limit: f64) -> Self {
        Self {
            limit: limit.clamp(CLOSEST, 1.0 - CLOSEST),
            evidence: AnyStart::new(),
        }
    }

    /// Takes in one interval.
    pub fn see(&mut self, seen: Trials) {
        let ratio = |odds: f64| {
            let grown = 1.0 + (odds - 1.0) * self.limit;
            count(seen.hits) * odds.ln() - count(seen.n) * grown.ln()
        };
        self.evidence.see(&ODDS.map(ratio));
    }

    /// `ln E` against "the share is at most the limit".
    #[must_use]
    pub fn log_e(&self) -> f64 {
        self.evidence.log_e()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::draws::{Draws, summary};

    #[test]
    fn at_the_limit_the_mean_of_every_ratio_is_one_and_below_it_less() {
        for limit in [0.01, 0.3] {
            for odds in ODDS {
                let ratio = |hits| {
                    let grown: f64 = 1.0 + (odds - 1.0) * limit;
                    (f64::from(hits) * odds.ln() - grown.ln()).exp()
                };
                let mean = |p: f64| p * ratio(1) + (1.0 - p) * ratio(0);
                assert!((mean(limit) - 1.0).abs() < 1e-12);
                assert!(mean(limit / 2.0) < 1.0);
            }
        }
    }

    #[test]
    fn a_share_at_its_limit_raises_no_more_false_alarms_than_promised() {
        let alarms = (0..200)
            .filter(|seed| {
                let mut draws = Draws::seeded(*seed);
                let mut test = LimitTest::new(0.05);
                (0..200).any(|_| {
                    test.see(draws.trials(10, 0.05));
                    test.log_e() >= 20_f64.ln()
                })
            })
            .count();
        assert!(alarms <= 10, "{alarms} of 200 at 5 %");
    }

    #[test]
    fn a_breach_is_found_soon_also_after_good_hours() {
        let found = |good: u64, seed| {
            let mut draws = Draws::seeded(seed);
            let mut test = LimitTest::new(0.01);
            (0..good).for_each(|_| test.see(draws.trials(10, 0.001)));
            (1..1_000)
                .find(|_| {
                    test.see(draws.trials(10, 0.1));
                    test.log_e() >= 1_000_f64.ln()
                })
                .unwrap()
        };
        let (at_once, _) = summary((0..41).map(|seed| found(0, seed)).collect());
        let (late, _) = summary((0..41).map(|seed| found(3_600, seed)).collect());
        assert!(at_once <= 15 && late <= 30, "{at_once} {late}");
    }

    #[test]
    fn a_limit_of_nothing_or_everything_is_no_division_by_zero() {
        for limit in [0.0, 1.0] {
            let mut test = LimitTest::new(limit);
            test.see(Trials { n: 3, hits: 3 });
            assert!(test.log_e().is_finite());
        }
    }
}
