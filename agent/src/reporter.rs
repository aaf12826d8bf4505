//! Once a window: sample the node, take the counts, send the report (or several, where one
//! would be too large).
//!
//! Without a coordinator the counts stay where they are, and the first report after
//! it covers the whole time; its `duration_ms` says so.

use std::sync::Arc;
use std::time::Duration;

use rollcall_shared::codec;
use rollcall_shared::limits::REPORT_BYTES_MAX;
use rollcall_shared::report::{Report, Series};
use rollcall_shared::time::Timestamp;
use rollcall_transport::clock::Clock;
use tokio_util::sync::CancellationToken;

use crate::link::LinkHandle;
use crate::recorder::{Recorder, Window};
use crate::resources::Sampler;
use crate::serve::status::StatusBoard;

/// The pace of sampling without a coordinator.
const OFFLINE_EVERY: Duration = Duration::from_secs(5);
/// The node is sampled no more often, however short the windows are; a little under
/// the usual window, so that a timer that fires early does not skip one.
const SAMPLE_EVERY_MIN: Duration = Duration::from_millis(900);

/// Series in one report; the node's own figures take the rest.
const PART_BYTES_MAX: usize = REPORT_BYTES_MAX - (64 << 10);

/// Bytes of blobs in the cache, when asked.
pub type CacheBytes = Box<dyn Fn() -> u64 + Send + Sync>;

/// Makes reports.
pub struct Reporter {
    /// Time.
    pub clock: Clock,
    /// Takes reports.
    pub link: LinkHandle,
    /// Has the counts.
    pub recorder: Arc<Recorder>,
    /// Shows the samples.
    pub status: Arc<StatusBoard>,
    /// Reads the node.
    pub sampler: Sampler,
    /// How full the cache is.
    pub cache_bytes: CacheBytes,
}

impl Reporter {
    /// Reports until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut window = 0;
        let mut window_began = self.clock.now();
        let mut sampled: Option<Timestamp> = None;
        loop {
            let due = sampled.is_none_or(|at| self.clock.now().since(at) >= SAMPLE_EVERY_MIN);
            if due {
                sampled = Some(self.clock.now());
                self = self.sample().await;
            }
            let cadence = self.link.cadence();
            let every = cadence.map_or(OFFLINE_EVERY, |cadence| cadence.report_every);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(every) => {}
                () = self.link.welcomed(), if cadence.is_none() => {}
            }
            if cadence.is_some() && self.link.cadence().is_some() {
                let now = self.clock.now();
                self.report(window, now.since(window_began)).await;
                (window, window_began) = (window + 1, now);
            }
        }
    }

    /// On a blocking thread, and back.
    async fn sample(self) -> Self {
        let Self {
            clock,
            link,
            recorder,
            status,
            mut sampler,
            cache_bytes,
        } = self;
        let sampling = tokio::task::spawn_blocking(move || {
            let sample = sampler.sample(cache_bytes());
            (sampler, cache_bytes, sample)
        });
        match sampling.await {
            Ok((sampler, cache_bytes, sample)) => {
                status.post_sample(sample);
                Self {
                    clock,
                    link,
                    recorder,
                    status,
                    sampler,
                    cache_bytes,
                }
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn report(&self, window: u64, duration: Duration) {
        let Window {
            series,
            mut series_dropped,
        } = self.recorder.take_window();
        let sample = self.status.sample();
        for series in parts(series, PART_BYTES_MAX) {
            let report = Report {
                window,
                duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
                series,
                series_dropped: std::mem::take(&mut series_dropped),
                resources: sample.resources.clone(),
            };
            if let Err(error) = self.link.send_report(report).await {
                tracing::debug!(%error, "a report got lost");
            }
        }
    }
}

/// What reports can carry, in one unless there is very much. At least one, which may be empty.
fn parts(window: Vec<Series>, bytes_max: usize) -> Vec<Vec<Series>> {
    // A series that cannot be encoded has no size either.
    let bytes = |series: &Series| codec::encode(series).map_or(usize::MAX, |bytes| bytes.len());
    let mut parts = vec![Vec::new()];
    let mut taken = 0;
    for mut series in window {
        if bytes(&series) > bytes_max {
            tracing::warn!(model = %series.model, "the segments of a version are too many for a \
                report; give them fewer or shorter names of classes and outcomes");
            series.segments.clear();
        }
        let more = bytes(&series);
        taken += more;
        match parts.last_mut() {
            Some(part) if taken <= bytes_max || part.is_empty() => part.push(series),
            _ => {
                taken = more;
                parts.push(vec![series]);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use rollcall_shared::assignment::VersionRef;
    use rollcall_shared::digest::Digest;
    use rollcall_shared::ids::{Generation, ModelName};
    use rollcall_shared::report::{Counts, Role, Segment};
    use rollcall_shared::version::Version;

    use super::*;

    fn series(generation: u64, segments: usize) -> Series {
        let segment = Segment {
            name: "x".repeat(40),
            counts: Counts::default(),
        };
        Series {
            model: ModelName::new("digits").unwrap(),
            version: VersionRef {
                version: Version::new(1, 0, 0),
                digest: Digest::of(b"x"),
            },
            role: Role::Stable,
            generation: Generation(generation),
            counts: Counts::default(),
            segments: vec![segment; segments],
        }
    }

    #[test]
    fn a_window_that_is_too_large_goes_in_several_reports_and_nothing_is_lost() {
        assert_eq!(parts(Vec::new(), 1_000), [Vec::new()]);
        let window: Vec<_> = (0..10).map(|i| series(i, 3)).collect();
        let all = parts(window.clone(), 1_000);
        assert!(all.len() > 1 && all.iter().all(|part| !part.is_empty()));
        for part in &all {
            assert!(codec::encode(part).unwrap().len() <= 1_010);
        }
        assert_eq!(all.concat(), window);
    }

    #[test]
    fn a_series_that_is_too_large_alone_goes_without_its_segments() {
        let window = vec![series(1, 1), series(2, 50), series(3, 1)];
        let all = parts(window, 1_000).concat();
        let segments: Vec<_> = all.iter().map(|series| series.segments.len()).collect();
        assert_eq!(segments, [1, 0, 1]);
    }
}
