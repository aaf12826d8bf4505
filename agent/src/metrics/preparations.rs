//! How far the versions are that are being prepared.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use rollcall_shared::time::Timestamp;

use super::precise;
use crate::progress::PreparingLine;

/// Written for each version, at `now`. Bytes are left out until the manifest says how
/// many there are.
pub(super) fn encode(
    preparing: &[PreparingLine],
    now: Timestamp,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let seconds = |since: Timestamp| now.since(since).as_secs_f64();
    let help = "Files of a version that is being prepared: bytes that are here, and of all";
    let mut metric =
        encoder.encode_descriptor("preparation_bytes", help, None, MetricType::Gauge)?;
    for line in preparing {
        let Some(bytes) = line.bytes else { continue };
        for (of, bytes) in [("here", bytes.here), ("total", bytes.total)] {
            let [model, version] = labels(line);
            metric
                .encode_family(&[model, version, ("of", of.to_owned())])?
                .encode_gauge(&precise(bytes))?;
        }
    }
    let help = "How long a version has been in this phase of being prepared";
    let mut metric =
        encoder.encode_descriptor("preparation_phase_seconds", help, None, MetricType::Gauge)?;
    for line in preparing {
        let [model, version] = labels(line);
        metric
            .encode_family(&[model, version, ("phase", line.phase.name().to_owned())])?
            .encode_gauge(&seconds(line.phase_since))?;
    }
    let help = "How long a version has been prepared, since the last attempt began";
    let mut metric =
        encoder.encode_descriptor("preparation_seconds", help, None, MetricType::Gauge)?;
    for line in preparing {
        metric
            .encode_family(&labels(line))?
            .encode_gauge(&seconds(line.since))?;
    }
    Ok(())
}

fn labels(line: &PreparingLine) -> [(&'static str, String); 2] {
    [
        ("model", line.model.to_string()),
        ("version", line.version.to_string()),
    ]
}
