//! Calibration: is the model right as often as it is sure?
//!
//! The expected calibration error comes from bins of equal width of confidence, with `n_b` answers,
//! mean confidence `conf` and share right `acc`, of `n` in all:
//!
//! ```text
//! plain            = sum (n_b/n) |acc - conf|
//! debiased square  = sum (n_b/n) [ (acc - conf)^2 - acc (1 - acc)/(n_b - 1) ]
//! ```
//!
//! The plain form is the one that people know, and is biased upward: a perfectly calibrated model
//! has almost 0.09 at 200 labels in 15 bins, and less with every label. It may be compared only at
//! about equal numbers of labels. The debiased one subtracts what chance adds to each square, is
//! right on average whatever the number, and is what two versions are compared by.
//!
//! Source: Kumar, Liang, Ma, "Verified Uncertainty Calibration" (arXiv 1909.10155).
//! Assumes independent labels, and confidences that differ little within a bin. Bins with one
//! label say nothing of chance and are left out of the debiased form. Neither is a test: with
//! few labels both scatter, so a policy needs a minimum of them.

use rollcall_shared::report::CalibrationBin;

use super::count;

/// Calibration error of one version.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    /// Labelled answers that it rests on.
    pub labels: u64,
    /// Expected calibration error, 0 to 1; biased upward.
    pub plain: f64,
    /// Mean square of the error without the part that chance adds; below 0 where that is more
    /// than was seen. `None` if no bin has two labels.
    pub debiased_square: Option<f64>,
}

impl Calibration {
    /// From bins of confidence. `None` without labels.
    #[must_use]
    pub fn of(bins: &[CalibrationBin]) -> Option<Self> {
        let labels = bins.iter().map(|bin| bin.count).sum();
        if labels == 0 {
            return None;
        }
        let filled = bins.iter().filter(|bin| bin.count > 0);
        let plain = filled.map(|bin| share(bin.count, labels) * gap(bin).abs());
        let several: Vec<_> = bins.iter().filter(|bin| bin.count > 1).collect();
        let rest = several.iter().map(|bin| bin.count).sum();
        let square = several.iter().map(|bin| {
            let right = share(bin.correct, bin.count);
            let chance = right * (1.0 - right) / (count(bin.count) - 1.0);
            share(bin.count, rest) * (gap(bin).powi(2) - chance)
        });
        Some(Self {
            labels,
            plain: plain.sum(),
            debiased_square: (rest > 0).then(|| square.sum()),
        })
    }

    /// Root of the debiased square, on the scale of the plain form: what calibration error is left
    /// when chance is taken away. 0 where that leaves nothing.
    #[must_use]
    pub fn debiased(&self) -> Option<f64> {
        self.debiased_square.map(|square| square.max(0.0).sqrt())
    }
}

/// How much more often right than sure.
fn gap(bin: &CalibrationBin) -> f64 {
    share(bin.correct, bin.count) - bin.confidence / count(bin.count)
}

fn share(part: u64, whole: u64) -> f64 {
    count(part) / count(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::draws::Draws;
    use rollcall_shared::report::CALIBRATION_BINS;

    /// Answers that are right as often as sure, plus `off`; confidences even over 0 to 1.
    fn answers(draws: &mut Draws, n: u32, off: f64) -> Vec<CalibrationBin> {
        let mut bins = vec![CalibrationBin::default(); CALIBRATION_BINS];
        for i in 0..n {
            let confidence = (f64::from(i) + 0.5) / f64::from(n);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "0 to 14"
            )]
            let bin = &mut bins[(confidence * 15.0) as usize];
            bin.count += 1;
            bin.confidence += confidence;
            bin.correct += u64::from(draws.hits(confidence + off));
        }
        bins
    }

    #[test]
    fn chance_looks_like_bad_calibration_in_the_plain_form_only() {
        let mut draws = Draws::seeded(1);
        let mut mean = |n, off| {
            let of = |_| Calibration::of(&answers(&mut draws, n, off)).unwrap();
            let all: Vec<_> = (0..200).map(of).collect();
            let mean = |f: fn(&Calibration) -> f64| all.iter().map(f).sum::<f64>() / 200.0;
            (mean(|c| c.plain), mean(|c| c.debiased_square.unwrap()))
        };
        let (few, few_debiased) = mean(200, 0.0);
        let (many, _) = mean(2_000, 0.0);
        assert!((few - 0.086).abs() < 0.01, "{few}");
        assert!(many < 0.04, "{many}");
        assert!(few_debiased.abs() < 0.001, "{few_debiased}");
        let (_, off) = mean(200, -0.2);
        assert!((off.sqrt() - 0.19).abs() < 0.02, "{off}");
    }

    #[test]
    fn bins_without_labels_or_with_one_do_not_divide_by_nothing() {
        assert_eq!(Calibration::of(&[CalibrationBin::default()]), None);
        let one = CalibrationBin {
            count: 1,
            confidence: 0.75,
            correct: 1,
        };
        let calibration = Calibration::of(&[one, CalibrationBin::default()]).unwrap();
        assert!((calibration.plain - 0.25).abs() < 1e-12);
        assert_eq!(calibration.debiased(), None);
        let two = CalibrationBin {
            count: 2,
            confidence: 1.5,
            correct: 2,
        };
        let calibration = Calibration::of(&[one, two]).unwrap();
        assert!((calibration.debiased().unwrap() - 0.25).abs() < 1e-12);
    }
}
