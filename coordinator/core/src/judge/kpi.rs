//! Outcomes that are numbers (revenue, minutes watched): how far is the candidate's mean from
//! stable's, whenever one looks?
//!
//! A confidence sequence for the difference of two means, and for the ratio of one to the other.
//! With `n` outcomes in all, `V` the squared standard error of the difference, and
//!
//! ```text
//! c = (1 + 1/(n rho^2)) (ln(n rho^2 + 1) - 2 ln alpha)         half width = sqrt(c V)
//! rho^2 = (-2 ln alpha + ln(1 - 2 ln alpha)) / sharpest_at
//! ```
//!
//! Source: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (arXiv 2103.06476), the Gaussian mixture and
//! the choice of its `rho`. The ratio is Fieller's set: all `r` for which 0 is in the sequence of
//! `mean1 - r mean0`.
//!
//! It is *asymptotic*: outcomes have no bound and any distribution, so the error is bounded by
//! `alpha` only as far as sums are about normal. With few outcomes, or with one in a thousand that
//! is a thousand times as large, it is not; hence `least`: at `alpha` .01 and 200 looks, equal
//! versions with lognormal outcomes (sigma 1) were told apart in 2.2 % of 1,000 runs with a `least`
//! of 100, in 0.5 % with 1,000; with normal outcomes in 0.6 % at 100. Other assumptions: outcomes are
//! independent (one a client, not one a click), and the candidate's share of traffic was about
//! constant: over a ramp, means that drift in the day mix with the share (Simpson's paradox), so
//! counts of one stage are compared, not of all.

use rollcall_shared::report::Moments;

use super::count;

/// How certain, from how many on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// Probability, 0 to 1, of being wrong at any look.
    pub alpha: f64,
    /// Outcomes that each version needs; at least 2 are taken.
    pub least: u64,
    /// Outcomes of both versions at which the interval is as narrow as it can be. To be chosen
    /// before looking; it costs little to be wrong by a factor of ten.
    pub sharpest_at: u64,
}

/// A value and what it can be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// As it was seen.
    pub seen: f64,
    /// At least.
    pub low: f64,
    /// At most.
    pub high: f64,
}

impl Terms {
    /// Mean of the candidate minus mean of stable. `None` with too few outcomes.
    #[must_use]
    pub fn difference(&self, candidate: &Moments, stable: &Moments) -> Option<Interval> {
        let (one, zero, width) = self.means(candidate, stable)?;
        let seen = one.mean - zero.mean;
        let half = (width * (one.error_square + zero.error_square)).sqrt();
        Some(Interval {
            seen,
            low: seen - half,
            high: seen + half,
        })
    }

    /// The difference as a part of stable's mean (of its size, if it is negative): -0.05 is a mean
    /// that is 5 % lower. `None` with too few outcomes, or if stable's mean could be 0.
    #[must_use]
    pub fn relative_change(&self, candidate: &Moments, stable: &Moments) -> Option<Interval> {
        let (one, zero, width) = self.means(candidate, stable)?;
        // (mean1 - r mean0)^2 <= width (error1 + r^2 error0), solved for r
        let a = zero.mean.powi(2) - width * zero.error_square;
        let b = one.mean * zero.mean;
        let c = one.mean.powi(2) - width * one.error_square;
        if a <= 0.0 {
            return None;
        }
        let root = b.mul_add(b, -(a * c)).max(0.0).sqrt();
        let sign = zero.mean.signum();
        let change = |ratio: f64| sign * (ratio - 1.0);
        let ends = (change((b - root) / a), change((b + root) / a));
        Some(Interval {
            seen: change(one.mean / zero.mean),
            low: ends.0.min(ends.1),
            high: ends.0.max(ends.1),
        })
    }

    /// Both means, and the square of the half width in standard errors.
    fn means(&self, candidate: &Moments, stable: &Moments) -> Option<(Mean, Mean, f64)> {
        let least = self.least.max(2);
        if candidate.count < least || stable.count < least {
            return None;
        }
        let n = count(candidate.count) + count(stable.count);
        let certain = -2.0 * self.alpha.ln();
        let rho_square = (certain + certain.ln_1p()) / count(self.sharpest_at.max(1));
        let scaled = n * rho_square;
        let width = (1.0 + scaled.recip()) * (scaled.ln_1p() + certain);
        Some((Mean::of(candidate), Mean::of(stable), width))
    }
}

struct Mean {
    mean: f64,
    /// Square of its standard error.
    error_square: f64,
}

impl Mean {
    /// Sums of squares lose digits where the mean is far above the deviation; never below 0.
    fn of(moments: &Moments) -> Self {
        let n = count(moments.count);
        let mean = moments.sum / n;
        let square = (moments.squares / n - mean * mean).max(0.0);
        Self {
            mean,
            error_square: square / (n - 1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::draws::Draws;

    const TERMS: Terms = Terms {
        alpha: 0.05,
        least: 50,
        sharpest_at: 1_000,
    };

    fn outcomes(draws: &mut Draws, n: u32, mean: f64) -> Moments {
        let mut moments = Moments::default();
        for _ in 0..n {
            moments.record(mean + draws.normal());
        }
        moments
    }

    #[test]
    fn the_truth_is_inside_at_every_look() {
        let missed = (0..100)
            .filter(|seed| {
                let mut draws = Draws::seeded(*seed);
                let (mut candidate, mut stable) = (Moments::default(), Moments::default());
                (0..100).any(|_| {
                    candidate.merge(&outcomes(&mut draws, 5, 9.0));
                    stable.merge(&outcomes(&mut draws, 20, 10.0));
                    let wrong = |interval: Option<Interval>, truth: f64| {
                        interval.is_some_and(|i| i.low > truth || i.high < truth)
                    };
                    wrong(TERMS.difference(&candidate, &stable), -1.0)
                        || wrong(TERMS.relative_change(&candidate, &stable), -0.1)
                })
            })
            .count();
        assert!(missed <= 5, "{missed} of 100 at 5 %");
    }

    #[test]
    fn a_mean_that_is_a_tenth_lower_is_seen_whatever_its_sign() {
        let mut draws = Draws::seeded(1);
        let (nine, ten) = (
            outcomes(&mut draws, 400, 9.0),
            outcomes(&mut draws, 4_000, 10.0),
        );
        let change = TERMS.relative_change(&nine, &ten).unwrap();
        assert!(-0.13 < change.low && change.low < change.seen, "{change:?}");
        assert!(
            change.seen < change.high && change.high < -0.07,
            "{change:?}"
        );
        let negative = |moments: Moments| Moments {
            sum: -moments.sum,
            ..moments
        };
        let mirrored = TERMS
            .relative_change(&negative(nine), &negative(ten))
            .unwrap();
        assert!((mirrored.low + change.high).abs() < 1e-12 && mirrored.low > 0.07);
        let difference = TERMS.difference(&nine, &ten).unwrap();
        assert!(
            difference.high < -0.7 && difference.low > -1.3,
            "{difference:?}"
        );
    }

    #[test]
    fn too_few_outcomes_or_a_stable_mean_about_zero_say_nothing() {
        let mut draws = Draws::seeded(2);
        let (few, many) = (
            outcomes(&mut draws, 49, 1.0),
            outcomes(&mut draws, 500, 0.0),
        );
        assert_eq!(TERMS.difference(&few, &many), None);
        assert_eq!(TERMS.relative_change(&many, &few), None);
        assert!(TERMS.difference(&many, &many).is_some());
        assert_eq!(TERMS.relative_change(&many, &many), None);
    }

    #[test]
    fn outcomes_that_never_vary_leave_no_doubt_and_no_nan() {
        let constant = |value| Moments {
            count: 100,
            sum: 100.0 * value,
            squares: 100.0 * value * value,
        };
        let difference = TERMS.difference(&constant(2.0), &constant(3.0)).unwrap();
        assert!((difference.low + 1.0).abs() < 1e-9 && (difference.high + 1.0).abs() < 1e-9);
    }
}
