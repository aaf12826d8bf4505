//! The GPUs of the node, as they were last sampled. What a product does not tell has no line.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::precise;
use crate::resources::gpu::GpuSample;

/// A gauge of each GPU: its name, its help, and where it is.
type GaugeOf = (&'static str, &'static str, fn(&GpuSample) -> Option<f64>);

const GAUGES: [GaugeOf; 3] = [
    ("gpu_utilization_percent", "How busy it is", |gpu| {
        gpu.utilization_percent.map(f64::from)
    }),
    ("gpu_temperature_celsius", "How hot it is", |gpu| {
        gpu.temperature_celsius.map(f64::from)
    }),
    ("gpu_power_watts", "What it takes", |gpu| {
        gpu.power_watts.map(f64::from)
    }),
];

pub(super) fn encode(gpus: &[GpuSample], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    for (name, help, value) in GAUGES {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for gpu in gpus {
            if let Some(value) = value(gpu) {
                metric.encode_family(&labels(gpu))?.encode_gauge(&value)?;
            }
        }
    }
    let help = "GPU memory: all, in use by anyone, and of the processes that compute on it, \
        the agent itself and others";
    let mut metric =
        encoder.encode_descriptor("gpu_memory_bytes", help, None, MetricType::Gauge)?;
    for gpu in gpus {
        for (of, bytes) in [
            ("total", Some(gpu.memory_total)),
            ("used", Some(gpu.memory_used)),
            ("self", gpu.memory_of.map(|of| of.own)),
            ("others", gpu.memory_of.map(|of| of.others)),
        ] {
            let Some(bytes) = bytes else { continue };
            let [index, name] = labels(gpu);
            metric
                .encode_family(&[index, name, ("of", of.to_owned())])?
                .encode_gauge(&precise(bytes))?;
        }
    }
    let help = "Memory errors that ECC could not correct: since the driver was loaded \
        (volatile), and in the GPU's life (aggregate)";
    let name = "gpu_ecc_uncorrected_errors";
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for gpu in gpus {
        for (counter, errors) in [
            ("volatile", gpu.ecc_volatile),
            ("aggregate", gpu.ecc_aggregate),
        ] {
            let Some(errors) = errors else { continue };
            let [index, name] = labels(gpu);
            metric
                .encode_family(&[index, name, ("counter", counter.to_owned())])?
                .encode_counter::<NoLabelSet, _, u64>(&errors, None)?;
        }
    }
    Ok(())
}

fn labels(gpu: &GpuSample) -> [(&'static str, String); 2] {
    [("gpu", gpu.index.to_string()), ("name", gpu.name.clone())]
}

#[cfg(test)]
mod tests {
    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::resources::gpu::MemoryShares;

    #[derive(Debug)]
    struct Only(Vec<GpuSample>);

    impl Collector for Only {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            encode(&self.0, &mut encoder)
        }
    }

    /// The lines of these GPUs, without comments.
    fn lines(gpus: Vec<GpuSample>) -> Vec<String> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Only(gpus)));
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn a_gpu_has_a_line_for_everything_that_it_tells() {
        let gpu = GpuSample {
            index: 3,
            name: "H200".to_owned(),
            utilization_percent: Some(40),
            memory_used: 70,
            memory_total: 100,
            memory_of: Some(MemoryShares { own: 50, others: 8 }),
            temperature_celsius: Some(61),
            power_watts: Some(350.5),
            ecc_volatile: Some(1),
            ecc_aggregate: Some(12),
        };
        let errors = "gpu_ecc_uncorrected_errors_total{gpu=\"3\",name=\"H200\",counter=";
        assert_eq!(
            lines(vec![gpu]),
            [
                "gpu_utilization_percent{gpu=\"3\",name=\"H200\"} 40.0".to_owned(),
                "gpu_temperature_celsius{gpu=\"3\",name=\"H200\"} 61.0".to_owned(),
                "gpu_power_watts{gpu=\"3\",name=\"H200\"} 350.5".to_owned(),
                "gpu_memory_bytes{gpu=\"3\",name=\"H200\",of=\"total\"} 100.0".to_owned(),
                "gpu_memory_bytes{gpu=\"3\",name=\"H200\",of=\"used\"} 70.0".to_owned(),
                "gpu_memory_bytes{gpu=\"3\",name=\"H200\",of=\"self\"} 50.0".to_owned(),
                "gpu_memory_bytes{gpu=\"3\",name=\"H200\",of=\"others\"} 8.0".to_owned(),
                format!("{errors}\"volatile\"}} 1"),
                format!("{errors}\"aggregate\"}} 12"),
            ]
        );
    }

    #[test]
    fn what_a_gpu_does_not_tell_has_no_line_and_is_not_zero() {
        let gpu = GpuSample {
            name: "a product without ECC".to_owned(),
            memory_total: 100,
            ..GpuSample::default()
        };
        let lines = lines(vec![gpu]);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines.iter().all(|line| line.contains("gpu_memory_bytes{")));
    }
}
