//! NVIDIA GPUs through NVML, which is loaded at run time: the same binary runs
//! where there is no driver, and says so once.

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;
use rollcall_shared::report::Gpu;

/// GPUs looked at on one node. More are left out: a report stays small.
const GPUS_MAX: u32 = 32;

/// Reads the GPUs.
pub struct Gpus {
    nvml: Option<Nvml>,
}

impl std::fmt::Debug for Gpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Gpus({})",
            if self.nvml.is_some() { "NVML" } else { "none" }
        )
    }
}

impl Gpus {
    /// Loads NVML if it is there.
    #[must_use]
    pub fn open() -> Self {
        match Nvml::init() {
            Ok(nvml) => Self { nvml: Some(nvml) },
            Err(error) => {
                tracing::info!(%error, "no GPU figures: NVML is not usable on this host");
                Self { nvml: None }
            }
        }
    }

    /// One sample of each GPU. A GPU that fell off the bus is left out.
    pub fn sample(&self) -> Vec<Gpu> {
        let Some(nvml) = &self.nvml else {
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

/// Name and memory must be there; utilization, temperature and power are not on
/// every product (MIG slices have none).
fn sample(nvml: &Nvml, index: u32) -> Result<Gpu, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let memory = device.memory_info()?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "milliwatts, far below 2^24 watts"
    )]
    let watts = |milliwatts: u32| milliwatts as f32 / 1_000.0;
    Ok(Gpu {
        name: device.name()?,
        utilization_percent: device.utilization_rates().map_or(0, |rates| rates.gpu),
        memory_used: memory.used,
        memory_total: memory.total,
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        power_watts: device.power_usage().ok().map(watts),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_or_without_gpus_is_sampled_without_a_panic() {
        for gpu in Gpus::open().sample() {
            assert!(
                !gpu.name.is_empty() && gpu.memory_total >= gpu.memory_used,
                "{gpu:?}"
            );
        }
    }
}
