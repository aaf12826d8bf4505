//! The engines that this node has, and which model goes to which.
//!
//! The node's configuration says so, not the manifest: a manifest says what a version
//! is (an ONNX graph), and all of these run that. What is configured must work when the
//! agent starts, or it does not start: better than a node that refuses each version.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rollcall_shared::ids::ModelName;

use super::Engine;
use super::onnxruntime::{LibraryError, OnnxRuntime};
use super::tract::Tract;
use super::upstream::{Upstream, UpstreamError};
use crate::config::engine::{Engine as Settings, EngineName};

/// The engines.
pub struct Engines {
    memory_reserve: u64,
    default: Arc<dyn Engine>,
    by_model: BTreeMap<ModelName, Arc<dyn Engine>>,
}

/// Why the engines are not what the configuration says.
#[derive(Debug, thiserror::Error)]
pub enum EnginesError {
    /// onnxruntime.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The server.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// An engine is asked for that nothing configures.
    #[error("the configuration asks for {name:?}, and has no [engine] section for it")]
    NotConfigured {
        /// Which.
        name: EngineName,
    },
}

impl Engines {
    /// Opens what `settings` name. `dir`: the agent's own, where engines put what is
    /// theirs. Blocking; to be called within a tokio runtime.
    ///
    /// # Errors
    /// When one of them does not work.
    pub fn open(settings: &Settings, dir: &Path) -> Result<Self, EnginesError> {
        let tract: Arc<dyn Engine> = Arc::new(Tract::new());
        let mut engines = vec![(EngineName::Tract, tract)];
        if let Some(settings) = &settings.onnxruntime {
            let engine = OnnxRuntime::open(settings, dir)?;
            engines.push((EngineName::Onnxruntime, Arc::new(engine)));
        }
        if let Some(settings) = &settings.upstream {
            let engine = Upstream::open(settings)?;
            engines.push((EngineName::Upstream, Arc::new(engine)));
        }
        let named = |name: EngineName| {
            let found = engines.iter().find(|(known, _)| *known == name);
            found
                .map(|(_, engine)| Arc::clone(engine))
                .ok_or(EnginesError::NotConfigured { name })
        };
        let by_model = settings
            .models
            .iter()
            .map(|(model, name)| Ok((model.clone(), named(*name)?)))
            .collect::<Result<_, EnginesError>>()?;
        Ok(Self {
            memory_reserve: settings.memory_reserve_mib.saturating_mul(1 << 20),
            default: named(settings.default)?,
            by_model,
        })
    }

    /// Bytes of memory that a version which comes beside another must leave free.
    #[must_use]
    pub const fn memory_reserve(&self) -> u64 {
        self.memory_reserve
    }

    /// What runs `model`.
    #[must_use]
    pub fn of(&self, model: &ModelName) -> Arc<dyn Engine> {
        Arc::clone(self.by_model.get(model).unwrap_or(&self.default))
    }
}
