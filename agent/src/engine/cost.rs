//! What a version costs a core, and whether that is out of all proportion.
//!
//! The host's cores are stable's and the candidate's alike. At equal priority a candidate that
//! computes for a hundred times as long takes them from stable's clients, slice by slice; at a
//! lower one, its latency would say as much of the host as of the version, and a good one be
//! judged by it. So a candidate has stable's priority until it has shown that it costs several
//! times what stable does: its latency says so by then, whatever its priority.
//!
//! Counted is the CPU time of the thread that runs the model, for each row: it is the same on a
//! busy host as on an idle one. What an engine does on threads of its own, or in a server
//! beside the agent, is not in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rollcall_agent_core::tensor::Tensor;
use rustix::time::{ClockId, clock_gettime};

use super::{InferError, LoadedModel};

/// A candidate that costs more than so many times what stable does has a lower priority.
const TIMES_MAX: u64 = 4;
/// Below this a row takes less of a core than the kernel gives anyone at a time.
const HARMLESS_NS: u64 = 500_000;
/// All of the first runs are measured, and one in so many after them: reading the clock takes as
/// long as some hundredths of the smallest model.
const MEASURED: u64 = 8;

/// Nanoseconds of CPU for each row, a moving mean; 0: not known yet. Wrong by a run or two where
/// threads write at the same time, which matters to nobody.
#[derive(Debug, Default)]
pub struct Cost {
    runs: AtomicU64,
    row_ns: AtomicU64,
}

impl Cost {
    /// A model whose runs are counted here.
    #[must_use]
    pub fn of(model: Arc<dyn LoadedModel>) -> (Arc<dyn LoadedModel>, Arc<Self>) {
        let cost = Arc::new(Self::default());
        let counted = Counted {
            model,
            cost: Arc::clone(&cost),
        };
        (Arc::new(counted), cost)
    }

    /// Whether this is out of proportion to what another version of the model costs.
    #[must_use]
    pub fn is_out_of_proportion_to(&self, other: &Self) -> bool {
        let [own, other] = [self, other].map(|cost| cost.row_ns.load(Ordering::Relaxed));
        other > 0 && own > HARMLESS_NS && own / TIMES_MAX > other
    }

    fn is_due(&self) -> bool {
        let runs = self.runs.fetch_add(1, Ordering::Relaxed);
        runs < MEASURED || runs.is_multiple_of(MEASURED)
    }

    fn add(&self, rows: usize, ns: u64) {
        let new = ns / u64::try_from(rows.max(1)).unwrap_or(u64::MAX);
        let mean = match self.row_ns.load(Ordering::Relaxed) {
            0 => new,
            old => (old - old / MEASURED).saturating_add(new / MEASURED),
        };
        self.row_ns.store(mean.max(1), Ordering::Relaxed);
    }
}

struct Counted {
    model: Arc<dyn LoadedModel>,
    cost: Arc<Cost>,
}

impl LoadedModel for Counted {
    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        if !self.cost.is_due() {
            return self.model.infer(inputs);
        }
        let before = thread_cpu_ns();
        let outputs = self.model.infer(inputs);
        let rows = inputs.first().map_or(1, Tensor::rows);
        self.cost.add(rows, thread_cpu_ns().saturating_sub(before));
        outputs
    }

    fn platform(&self) -> &str {
        self.model.platform()
    }
}

fn thread_cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    // Neither is ever negative.
    let [seconds, ns] = [now.tv_sec, now.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(row_ns: u64) -> Cost {
        let cost = Cost::default();
        cost.add(1, row_ns);
        cost
    }

    #[test]
    fn only_what_costs_several_times_as_much_and_takes_a_while_is_out_of_proportion() {
        let stable = cost(1_000_000);
        assert!(!cost(4_000_000).is_out_of_proportion_to(&stable));
        assert!(cost(4_100_000).is_out_of_proportion_to(&stable));
        assert!(!cost(400_000).is_out_of_proportion_to(&cost(10_000)));
        assert!(!cost(9_000_000).is_out_of_proportion_to(&Cost::default()));
    }

    #[test]
    fn rows_share_what_a_run_costs_and_one_odd_run_does_not_decide() {
        let cost = Cost::default();
        cost.add(10, 1_000);
        assert_eq!(cost.row_ns.load(Ordering::Relaxed), 100);
        cost.add(1, 900);
        assert_eq!(cost.row_ns.load(Ordering::Relaxed), 88 + 112);
    }

    /// Computes until its thread has taken this much of a core.
    struct Busy(u64);

    impl LoadedModel for Busy {
        fn infer(&self, _: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
            let until = thread_cpu_ns() + self.0;
            while thread_cpu_ns() < until {}
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_model_that_computes_is_told_from_one_that_does_not() {
        let (light, light_cost) = Cost::of(Arc::new(Busy(10_000)));
        let (busy, busy_cost) = Cost::of(Arc::new(Busy(20_000_000)));
        for model in [light, busy] {
            model.infer(&[]).unwrap();
        }
        assert!(busy_cost.is_out_of_proportion_to(&light_cost));
        assert!(!light_cost.is_out_of_proportion_to(&busy_cost));
    }
}
