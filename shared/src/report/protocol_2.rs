//! A report as agents of protocol 2 and older send it, field for field: bincode knows no
//! names, so this never changes. It goes when protocol 2 does.
//!
//! It knows no segments and nothing about what answers were like, and every failure counts,
//! whoever it hit.

use serde::{Deserialize, Serialize};

use super::{Quality, Resources, Role};
use crate::assignment::VersionRef;
use crate::histogram::Histogram;
use crate::ids::{Generation, ModelName};

/// What one node measured in one window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    window: u64,
    duration_ms: u64,
    series: Vec<Series>,
    series_dropped: u64,
    resources: Resources,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Series {
    model: ModelName,
    version: VersionRef,
    role: Role,
    generation: Generation,
    counts: Counts,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Counts {
    requests: u64,
    errors: u64,
    timeouts: u64,
    fallbacks: u64,
    latency: Histogram,
    compared: u64,
    agreed: u64,
    shed: u64,
}

impl From<Report> for super::Report {
    fn from(old: Report) -> Self {
        Self {
            window: old.window,
            duration_ms: old.duration_ms,
            series: old.series.into_iter().map(super::Series::from).collect(),
            series_dropped: old.series_dropped,
            resources: old.resources,
        }
    }
}

/// Leaves out what protocol 2 does not know.
impl From<super::Report> for Report {
    fn from(new: super::Report) -> Self {
        Self {
            window: new.window,
            duration_ms: new.duration_ms,
            series: new.series.into_iter().map(Series::from).collect(),
            series_dropped: new.series_dropped,
            resources: new.resources,
        }
    }
}

impl From<Series> for super::Series {
    fn from(old: Series) -> Self {
        Self {
            model: old.model,
            version: old.version,
            role: old.role,
            generation: old.generation,
            counts: old.counts.into(),
            segments: Vec::new(),
        }
    }
}

impl From<super::Series> for Series {
    fn from(new: super::Series) -> Self {
        Self {
            model: new.model,
            version: new.version,
            role: new.role,
            generation: new.generation,
            counts: new.counts.into(),
        }
    }
}

impl From<Counts> for super::Counts {
    fn from(old: Counts) -> Self {
        Self {
            requests: old.requests,
            errors: old.errors,
            timeouts: old.timeouts,
            fallbacks: old.fallbacks,
            failed_keys: old.errors.saturating_add(old.timeouts),
            latency: old.latency,
            compared: old.compared,
            agreed: old.agreed,
            shed: old.shed,
            quality: Quality::default(),
        }
    }
}

impl From<super::Counts> for Counts {
    fn from(new: super::Counts) -> Self {
        Self {
            requests: new.requests,
            errors: new.errors,
            timeouts: new.timeouts,
            fallbacks: new.fallbacks,
            latency: new.latency,
            compared: new.compared,
            agreed: new.agreed,
            shed: new.shed,
        }
    }
}
