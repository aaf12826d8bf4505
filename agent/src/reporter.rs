//! Once a window: sample the node, take the counts, send the report.
//!
//! Without a coordinator the counts stay where they are, and the first report after
//! it covers the whole time; its `duration_ms` says so.

use std::sync::Arc;
use std::time::Duration;

use rollcall_shared::report::{Report, Resources};
use rollcall_shared::time::Timestamp;
use rollcall_transport::clock::Clock;
use tokio_util::sync::CancellationToken;

use crate::link::LinkHandle;
use crate::recorder::Recorder;
use crate::resources::Sampler;
use crate::serve::status::StatusBoard;

/// The pace of sampling without a coordinator.
const OFFLINE_EVERY: Duration = Duration::from_secs(5);
/// The node is sampled no more often, however short the windows are; a little under
/// the usual window, so that a timer that fires early does not skip one.
const SAMPLE_EVERY_MIN: Duration = Duration::from_millis(900);

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
            let resources = sampler.sample(cache_bytes());
            (sampler, cache_bytes, resources)
        });
        match sampling.await {
            Ok((sampler, cache_bytes, resources)) => {
                status.post_resources(resources);
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
        let taken = self.recorder.take_window();
        let report = Report {
            window,
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            series: taken.series,
            series_dropped: taken.series_dropped,
            resources: Resources::clone(&self.status.resources()),
        };
        if let Err(error) = self.link.send_report(report).await {
            tracing::debug!(%error, "a report got lost");
        }
    }
}
