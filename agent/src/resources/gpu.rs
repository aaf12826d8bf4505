//! NVIDIA GPUs through NVML, which is loaded at run time: the same binary runs
//! where there is no driver, and says so once.
//!
//! Every call may wait in the driver, for a GPU that is out of order long: only the
//! [`super::Sampler`] makes them, and all others read its last sample.

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use rollcall_shared::report::Gpu;

/// GPUs looked at on one node. More are left out: a report stays small.
const GPUS_MAX: u32 = 32;

/// One GPU, as NVML tells it. `None`: this product or driver does not tell (MIG slices
/// have no utilization, products without ECC no ECC errors).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuSample {
    /// Its number on this node; it keeps it while others fall off the bus.
    pub index: u32,
    /// Its product name.
    pub name: String,
    /// Busy, 0 to 100.
    pub utilization_percent: Option<u32>,
    /// Bytes in use.
    pub memory_used: u64,
    /// Bytes in all.
    pub memory_total: u64,
    /// Who has them.
    pub memory_of: Option<MemoryShares>,
    /// Degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Watts.
    pub power_watts: Option<f32>,
    /// Memory errors that ECC could not correct, since the driver was loaded.
    pub ecc_volatile: Option<u64>,
    /// The same in all of the GPU's life.
    pub ecc_aggregate: Option<u64>,
}

/// GPU memory of the processes that compute on it, in bytes. The driver shows those of our
/// PID namespace only, and what it has itself is nobody's: the two need not add up to what
/// is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryShares {
    /// Of this process.
    pub own: u64,
    /// Of all others.
    pub others: u64,
}

impl MemoryShares {
    /// From the bytes of each process by its id; `None` where the driver does not tell
    /// those of one.
    fn of(processes: impl Iterator<Item = (u32, Option<u64>)>, own_pid: u32) -> Option<Self> {
        let mut shares = Self::default();
        for (pid, bytes) in processes {
            let share = if pid == own_pid {
                &mut shares.own
            } else {
                &mut shares.others
            };
            *share = share.saturating_add(bytes?);
        }
        Some(shares)
    }
}

/// As the coordinator hears it.
impl From<&GpuSample> for Gpu {
    fn from(sample: &GpuSample) -> Self {
        Self {
            name: sample.name.clone(),
            utilization_percent: sample.utilization_percent.unwrap_or(0),
            memory_used: sample.memory_used,
            memory_total: sample.memory_total,
            temperature_celsius: sample.temperature_celsius,
            power_watts: sample.power_watts,
        }
    }
}

/// Reads the GPUs.
#[derive(Default)]
pub enum Gpus {
    /// Nobody has asked yet: loading NVML blocks, too.
    #[default]
    Unopened,
    /// NVML is not usable on this host.
    Absent,
    /// It is.
    Nvml(Box<Nvml>),
}

impl std::fmt::Debug for Gpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unopened => "Unopened",
            Self::Absent => "Absent",
            Self::Nvml(_) => "Nvml",
        })
    }
}

impl Gpus {
    /// Loads NVML if it is there.
    fn open() -> Self {
        match Nvml::init() {
            Ok(nvml) => Self::Nvml(Box::new(nvml)),
            Err(error) => {
                tracing::info!(%error, "no GPU figures: NVML is not usable on this host");
                Self::Absent
            }
        }
    }

    /// One sample of each GPU. A GPU that fell off the bus is left out. Blocking.
    pub fn sample(&mut self) -> Vec<GpuSample> {
        if let Self::Unopened = self {
            *self = Self::open();
        }
        let Self::Nvml(nvml) = self else {
            return Vec::new();
        };
        let count = nvml.device_count().unwrap_or(0).min(GPUS_MAX);
        (0..count)
            .filter_map(|index| {
                sample(nvml, index)
                    .inspect_err(|error| tracing::debug!(index, %error, "a GPU gave no figures"))
                    .ok()
            })
            .collect()
    }
}

/// Name and memory must be there.
fn sample(nvml: &Nvml, index: u32) -> Result<GpuSample, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let memory = device.memory_info()?;
    let uncorrected = |counter| device.total_ecc_errors(MemoryError::Uncorrected, counter);
    #[expect(
        clippy::cast_precision_loss,
        reason = "milliwatts, far below 2^24 watts"
    )]
    let watts = |milliwatts: u32| milliwatts as f32 / 1_000.0;
    Ok(GpuSample {
        index,
        name: device.name()?,
        utilization_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
        memory_used: memory.used,
        memory_total: memory.total,
        memory_of: device.running_compute_processes().ok().and_then(|all| {
            let processes = all.iter().map(|one| (one.pid, memory_of(one)));
            MemoryShares::of(processes, std::process::id())
        }),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        power_watts: device.power_usage().ok().map(watts),
        ecc_volatile: uncorrected(EccCounter::Volatile).ok(),
        ecc_aggregate: uncorrected(EccCounter::Aggregate).ok(),
    })
}

fn memory_of(process: &ProcessInfo) -> Option<u64> {
    match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_or_without_gpus_is_sampled_without_a_panic() {
        for gpu in Gpus::default().sample() {
            assert!(
                !gpu.name.is_empty() && gpu.memory_total >= gpu.memory_used,
                "{gpu:?}"
            );
        }
    }

    #[test]
    fn memory_is_ours_or_that_of_others_and_unknown_where_one_is() {
        let shares = |processes: &[(u32, Option<u64>)]| {
            let processes = processes.iter().copied();
            MemoryShares::of(processes, 7).map(|shares| (shares.own, shares.others))
        };
        assert_eq!(shares(&[]), Some((0, 0)));
        // Two contexts of ours, e.g. in two slices of a GPU.
        let all = [(7, Some(10)), (8, Some(1)), (7, Some(20)), (9, Some(2))];
        assert_eq!(shares(&all), Some((30, 3)));
        assert_eq!(shares(&[(7, Some(10)), (8, None)]), None);
    }
}
