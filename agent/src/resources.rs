//! How the node itself is: host, process, disk and GPUs, read once a window.
//!
//! Reading blocks for some hundred microseconds (NVML for some milliseconds), so
//! a driver calls [`Sampler::sample`] on a blocking thread.

pub mod gpu;
pub mod host;

use std::path::PathBuf;

use rollcall_shared::report::{Gpu, Resources};

use gpu::{GpuSample, Gpus};
use host::Host;

/// How the node was when it was last looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// What the coordinator hears.
    pub resources: Resources,
    /// The GPUs in full, for the node's own metrics.
    pub gpus: Vec<GpuSample>,
}

/// Reads the node's resources. CPU figures are averages since the sample before.
#[derive(Debug)]
pub struct Sampler {
    host: Host,
    gpus: Gpus,
}

impl Sampler {
    /// Opens what is there, but for the GPUs: the first sample does. `dir`: whose disk is
    /// looked at.
    #[must_use]
    pub fn open(dir: PathBuf) -> Self {
        Self {
            host: Host::open(dir),
            gpus: Gpus::default(),
        }
    }

    /// One sample; `cache_bytes` as the cache says.
    pub fn sample(&mut self, cache_bytes: u64) -> Sample {
        let mut resources = self.host.sample();
        resources.cache_bytes = cache_bytes;
        let gpus = self.gpus.sample();
        resources.gpus = gpus.iter().map(Gpu::from).collect();
        Sample { resources, gpus }
    }
}
