//! How the node itself is: host, process, disk and GPUs, read once a window.
//!
//! Reading blocks for some hundred microseconds (NVML for some milliseconds), so
//! a driver calls [`Sampler::sample`] on a blocking thread.

pub mod gpu;
pub mod host;

use std::path::PathBuf;

use rollcall_shared::report::Resources;

use gpu::Gpus;
use host::Host;

/// Reads the node's resources. CPU figures are averages since the sample before.
#[derive(Debug)]
pub struct Sampler {
    host: Host,
    gpus: Gpus,
}

impl Sampler {
    /// Opens what is there. `dir`: whose disk is looked at.
    #[must_use]
    pub fn open(dir: PathBuf) -> Self {
        Self {
            host: Host::open(dir),
            gpus: Gpus::open(),
        }
    }

    /// One sample; `cache_bytes` as the cache says.
    pub fn sample(&mut self, cache_bytes: u64) -> Resources {
        let mut resources = self.host.sample();
        resources.cache_bytes = cache_bytes;
        resources.gpus = self.gpus.sample();
        resources
    }
}
