//! Shadow agreement: what the share of agreeing pairs can be, whenever one looks.
//!
//! A confidence sequence for one proportion: with S of n pairs agreeing,
//!
//! ```text
//! { p : B(1/2+S, 1/2+n-S) / B(1/2, 1/2) / (p^S (1-p)^(n-S)) < 1/alpha }
//! ```
//!
//! What is left are the shares that the beta-binomial mixture (prior Beta(1/2, 1/2)) cannot
//! reject. Against the true share the ratio is a martingale that starts at 1, so by Ville's
//! inequality the interval contains the truth at *every* look, with probability `1 - alpha`.
//! Agreement is above a limit once the lower end is, below it once the upper end is.
//!
//! Source: Robbins' method of mixtures; Howard, Ramdas, McAuliffe, Sekhon (arXiv 1810.08240).
//! Assumes pairs that agree independently with one probability; if the share drifts, the
//! interval is about a mean of past shares, not exactly covered. A client that sends the same
//! input again and again breaks it: its pairs are one pair.

use statrs::function::beta::ln_beta;

use super::count;

/// Halvings until neighbouring numbers are left, from a width of 1 at most.
const HALVINGS: u32 = 80;

/// Lower and upper end of the share of agreement, given `agreed` of `compared` pairs. Wrong at
/// some look with probability `alpha` (0 to 1) at most. With nothing compared, 0 to 1.
#[must_use]
pub fn interval(agreed: u64, compared: u64, alpha: f64) -> (f64, f64) {
    let agreed = agreed.min(compared);
    if compared == 0 {
        return (0.0, 1.0);
    }
    let (hits, misses) = (count(agreed), count(compared - agreed));
    let mixture = ln_beta(0.5 + hits, 0.5 + misses) - ln_beta(0.5, 0.5);
    let rejects = |p: f64| {
        let hit = if agreed == 0 { 0.0 } else { hits * p.ln() };
        let miss = if agreed == compared {
            0.0
        } else {
            misses * (-p).ln_1p()
        };
        mixture - hit - miss >= -alpha.ln()
    };
    let best = hits / (hits + misses);
    (boundary(0.0, best, rejects), boundary(1.0, best, rejects))
}

/// The point between `out`, which is rejected if anything is, and `inside`, from which on nothing
/// is rejected; on the side of `out`, so that the interval is never too short.
fn boundary(mut out: f64, mut inside: f64, rejects: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(out, inside);
        if rejects(middle) {
            out = middle;
        } else {
            inside = middle;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::draws::Draws;

    #[test]
    fn the_ends_are_where_the_mixture_rejects() {
        let (lower, upper) = interval(980, 1_000, 0.01);
        assert!(0.95 < lower && lower < 0.98 && 0.98 < upper && upper < 0.995);
        assert_eq!(interval(0, 0, 0.01), (0.0, 1.0));
        let (lower, upper) = interval(0, 50, 0.01);
        assert!(lower == 0.0 && 0.0 < upper && upper < 0.2);
        let (mirrored, one) = interval(50, 50, 0.01);
        assert!(one == 1.0 && (mirrored - (1.0 - upper)).abs() < 1e-12);
        let (lower, upper) = interval(1_000_000_000, 2_000_000_000, 0.001);
        assert!(0.4999 < lower && lower < 0.5 && 0.5 < upper && upper < 0.5001);
    }

    #[test]
    fn the_truth_is_inside_at_every_look() {
        let missed = (0..100)
            .filter(|seed| {
                let mut draws = Draws::seeded(*seed);
                let (mut agreed, mut compared) = (0, 0);
                (0..100).any(|_| {
                    let pairs = draws.trials(5, 0.9);
                    agreed += pairs.hits;
                    compared += pairs.n;
                    let (lower, upper) = interval(agreed, compared, 0.05);
                    lower > 0.9 || upper < 0.9
                })
            })
            .count();
        assert!(missed <= 5, "{missed} of 100 at 5 %");
    }
}
