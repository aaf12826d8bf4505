//! What can be true of a candidate and of the traffic around it: one row each.
//!
//! All rows share a fleet of [`NODES`] nodes, a candidate share of 10 % and lognormal
//! latencies of sigma .6 around 100 ms. How many requests an interval brings is chosen so that
//! an interval, the resolution of every figure, is a few percent of what is to be measured (a
//! tenth at most). No finer: judges that compare what happened in the same interval learn little
//! from intervals of two or three requests.

use super::Setting;

/// Nodes of the fleet.
pub const NODES: usize = 8;
/// Share of requests that the candidate (or its shadow) gets.
pub const SHARE: f64 = 0.1;
/// What shadows must agree on, where a scenario has shadows.
pub const AGREEMENT_REQUIRED: f64 = 0.95;

/// One row.
#[derive(Debug)]
pub struct Scenario {
    /// As it is called on the command line.
    pub name: &'static str,
    /// In words.
    pub about: &'static str,
    /// Candidate requests an interval of all nodes together, on average.
    pub candidates: f64,
    /// How many intervals a run lasts at most.
    pub intervals: u32,
    /// Stable's share of failed requests.
    pub errors: f64,
    /// What traffic is like, for both versions.
    pub weather: Weather,
    /// Shares of the segments that requests name; empty: they name none.
    pub segments: &'static [f64],
    /// What is wrong with the candidate.
    pub fault: Fault,
    /// The interval from which it is.
    pub from: u32,
    /// Median of candidate requests until `Fail` by the test of this one metric alone, at a
    /// false alarm rate of .001, judged after every request.
    pub reference: Option<f64>,
    /// A bound on that median.
    pub bound: Option<f64>,
}

/// What traffic is like, for both versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Requests come at random, at the same rate all the time.
    Constant,
    /// Every interval brings the same number of requests, to nodes at random: what reference
    /// figures assume. (In an interval that happens to have two candidate requests instead of one,
    /// a failure of the candidate says less.)
    Even,
    /// Traffic, errors and latencies wander by factors of 4, 5 and 1.8 within a run.
    Drifting,
    /// Eightfold traffic now and then, and, on half of the nodes, 20 % errors at three times
    /// the latency.
    Bursts,
    /// One failure in five is a client that tries again and again, ten times on average, and
    /// fails each time: its key sticks to one version and one node.
    Retries,
}

/// What is wrong with the candidate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Nothing.
    Nothing,
    /// It fails this share of requests.
    Errors(f64),
    /// It takes so many times as long.
    Slower(f64),
    /// This share of requests takes so many times as long.
    Tail(f64, f64),
    /// It fails this share of the requests of one segment.
    Segment(usize, f64),
    /// On one node it fails this share of requests, for reasons of that node.
    Node(usize, f64),
    /// It only shadows, and agrees on this share.
    Agreement(f64),
}

/// What a judge should say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// Never `Fail`.
    Good,
    /// `Fail`, soon.
    Bad,
    /// Never `Fail`; take this node out.
    BadNode(usize),
}

impl Scenario {
    /// What a judge should say.
    #[must_use]
    pub fn truth(&self) -> Truth {
        match self.fault {
            Fault::Nothing => Truth::Good,
            Fault::Agreement(share) if share >= AGREEMENT_REQUIRED => Truth::Good,
            Fault::Node(node, _) => Truth::BadNode(node),
            Fault::Errors(_)
            | Fault::Slower(_)
            | Fault::Tail(..)
            | Fault::Segment(..)
            | Fault::Agreement(_) => Truth::Bad,
        }
    }

    /// Whether the candidate only shadows.
    #[must_use]
    pub const fn shadow(&self) -> bool {
        matches!(self.fault, Fault::Agreement(_))
    }

    /// What judges are told before the first interval.
    #[must_use]
    pub fn setting(&self, alpha: f64) -> Setting {
        Setting {
            alpha,
            agreement_min: self.shadow().then_some(AGREEMENT_REQUIRED),
        }
    }
}

const BASE: Scenario = Scenario {
    name: "",
    about: "",
    candidates: 10.0,
    intervals: 2_000,
    errors: 0.01,
    weather: Weather::Constant,
    segments: &[],
    fault: Fault::Nothing,
    from: 0,
    reference: None,
    bound: None,
};

/// All rows.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "aa-constant",
        about: "candidate is stable: 1 % errors, same latencies",
        ..BASE
    },
    Scenario {
        name: "aa-drifting",
        about: "candidate is stable, the day goes up and down",
        weather: Weather::Drifting,
        ..BASE
    },
    Scenario {
        name: "aa-bursts",
        about: "candidate is stable; bursts of traffic and of errors hit both",
        weather: Weather::Bursts,
        ..BASE
    },
    Scenario {
        name: "aa-retries",
        about: "candidate is stable; one failure in five is retried ten times in vain",
        weather: Weather::Retries,
        ..BASE
    },
    Scenario {
        name: "aa-tiny",
        about: "candidate is stable, and has one request in five intervals",
        candidates: 0.2,
        ..BASE
    },
    Scenario {
        name: "aa-segments",
        about: "candidate is stable in every one of eight segments",
        intervals: 500,
        segments: &[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.03, 0.02],
        ..BASE
    },
    Scenario {
        name: "errors-x2",
        about: "1 % errors become 2 %",
        intervals: 600,
        candidates: 50.0,
        weather: Weather::Even,
        fault: Fault::Errors(0.02),
        reference: Some(2_475.0),
        ..BASE
    },
    Scenario {
        name: "errors-x5",
        about: "1 % errors become 5 %",
        intervals: 1_600,
        candidates: 5.0,
        weather: Weather::Even,
        fault: Fault::Errors(0.05),
        reference: Some(221.0),
        ..BASE
    },
    Scenario {
        name: "errors-x10",
        about: "1 % errors become 10 %",
        intervals: 2_000,
        candidates: 2.0,
        weather: Weather::Even,
        fault: Fault::Errors(0.1),
        reference: Some(72.0),
        ..BASE
    },
    Scenario {
        name: "errors-1-to-50-percent",
        about: "1 % errors become 50 %",
        intervals: 3_000,
        candidates: 1.0,
        weather: Weather::Even,
        fault: Fault::Errors(0.5),
        reference: Some(10.0),
        ..BASE
    },
    Scenario {
        name: "errors-0.1-to-1-percent",
        about: ".1 % errors become 1 %",
        errors: 0.001,
        intervals: 500,
        candidates: 20.0,
        weather: Weather::Even,
        fault: Fault::Errors(0.01),
        reference: Some(760.0),
        ..BASE
    },
    Scenario {
        name: "latency-20-percent",
        about: "every request takes 20 % longer",
        intervals: 800,
        candidates: 10.0,
        weather: Weather::Even,
        fault: Fault::Slower(1.2),
        reference: Some(295.0),
        ..BASE
    },
    Scenario {
        name: "latency-x2",
        about: "every request takes twice as long",
        intervals: 2_000,
        candidates: 2.0,
        weather: Weather::Even,
        fault: Fault::Slower(2.0),
        reference: Some(40.0),
        ..BASE
    },
    Scenario {
        name: "latency-tail",
        about: "2 % of requests take five times as long",
        intervals: 500,
        candidates: 20.0,
        weather: Weather::Even,
        fault: Fault::Tail(0.02, 5.0),
        reference: Some(1_205.0),
        bound: Some(1_500.0),
        ..BASE
    },
    Scenario {
        name: "one-segment",
        about: "1 % errors become 20 % in one segment of five, a tenth of all requests",
        intervals: 1_000,
        segments: &[0.5, 0.2, 0.1, 0.1, 0.1],
        fault: Fault::Segment(2, 0.2),
        ..BASE
    },
    Scenario {
        name: "one-bad-node",
        about: "1 % errors become 30 % on one node of eight, for reasons of its own",
        intervals: 500,
        fault: Fault::Node(3, 0.3),
        ..BASE
    },
    Scenario {
        name: "late-break",
        about: "after 10,000 good requests, 1 % errors become 5 %",
        fault: Fault::Errors(0.05),
        from: 1_000,
        ..BASE
    },
    Scenario {
        name: "agreement-0.97",
        about: "shadow agrees on 97 %, 95 % are required",
        fault: Fault::Agreement(0.97),
        ..BASE
    },
    Scenario {
        name: "agreement-0.90",
        about: "shadow agrees on 90 %, 95 % are required",
        candidates: 4.0,
        fault: Fault::Agreement(0.9),
        ..BASE
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own_and_makes_sense() {
        let names: BTreeSet<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
        for scenario in SCENARIOS {
            let segments: f64 = scenario.segments.iter().sum();
            assert!(
                scenario.segments.is_empty() || (segments - 1.0).abs() < 1e-9,
                "{}",
                scenario.name
            );
            assert!(scenario.from < scenario.intervals);
            assert_eq!(
                scenario.name.starts_with("aa-"),
                scenario.fault == Fault::Nothing
            );
            let resolution = scenario
                .reference
                .map(|median| scenario.candidates / median);
            assert!(
                resolution.is_none_or(|share| share <= 0.1),
                "{}",
                scenario.name
            );
        }
    }
}
