//! A server of the Open Inference Protocol on this node (Triton, MLServer), which the
//! agent has run its models.
//!
//! The agent lays a version's files out in the server's model repository under a name of
//! its own, so that two versions of a model, or two loads of one, stand side by side;
//! tells the server to load it; asks it; and takes everything away when the version goes.
//!
//! A server fails where an embedded engine cannot: it may be down, restarted, or busy.
//! That is the node's fault and must not count against a version. So after every answer
//! that is none, the server is asked whether it has the model ready. If it has, the
//! failure is the model's (a timeout too: a slow model is the version's business). If it
//! has not, the node's, and the model is loaded anew beside the requests, which are
//! refused at once until it is back.
//!
//! It does not start the server, and does not share its repository with another agent.

mod repository;
mod server;
mod wire;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rollcall_agent_core::tensor::Tensor;
use rollcall_shared::manifest::{ModelSignature, TensorSpec};
use tokio::runtime::Handle;

use super::check::in_order;
use super::graph::{Side, check_datatypes, compare_names, mismatch};
use super::panics::{catch, cut};
use super::{Engine, EngineError, InferError, LoadFiles, LoadedModel};
use crate::config::engine::{Layout, Upstream as Settings};
use repository::Repository;
use server::{CallError, Server};
use wire::{Encoding, Metadata, MetadataTensor};

/// How often a server is asked whether it is ready.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// How often a lost model is loaded anew.
const RELOAD_EVERY: Duration = Duration::from_secs(1);

/// Why the server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The repository is not there, or closed to the agent.
    #[error(
        "cannot use engine.upstream.repository {path}: it must be a folder that the agent may write to"
    )]
    Repository {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No client.
    #[error("no HTTP client for engine.upstream.url")]
    Client(#[from] reqwest::Error),
}

/// The engine.
pub struct Upstream {
    site: Arc<Site>,
    encoding: Encoding,
    /// Tells this process's loads from those of others.
    run: u32,
    loads: AtomicU64,
}

/// The server, its repository, and the runtime that calls go through.
struct Site {
    server: Server,
    repository: Repository,
    runtime: Handle,
    load_timeout: Duration,
    infer_timeout: Duration,
}

impl Upstream {
    /// Removes what an earlier agent left behind. The server need not be up yet. To be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// When the repository cannot be read.
    pub fn open(settings: &Settings) -> Result<Self, UpstreamError> {
        let path = settings.repository.clone();
        let implementation = settings.implementation.clone();
        let repository = Repository::new(path.clone(), settings.layout, implementation);
        let unusable = |source| UpstreamError::Repository { path, source };
        let leftovers = repository.leftovers().map_err(unusable)?;
        let site = Arc::new(Site {
            server: Server::new(&settings.url)?,
            repository,
            runtime: Handle::current(),
            load_timeout: settings.load_timeout,
            infer_timeout: settings.infer_timeout,
        });
        for name in leftovers {
            tracing::info!(name, "an earlier agent's version leaves the server");
            // Dropped: it goes.
            drop(Placed {
                site: Arc::clone(&site),
                name,
            });
        }
        Ok(Self {
            site,
            encoding: match settings.layout {
                Layout::Triton => Encoding::Binary,
                Layout::Mlserver => Encoding::Json,
            },
            run: rand::random(),
            loads: AtomicU64::new(0),
        })
    }

    fn load_checked(
        &self,
        files: &LoadFiles,
        signature: &ModelSignature,
    ) -> Result<UpstreamModel, EngineError> {
        check_datatypes(signature)?;
        let name = files.name.replace('@', "--");
        let load = self.loads.fetch_add(1, Ordering::Relaxed);
        let placed = Placed {
            site: Arc::clone(&self.site),
            name: format!("{name}--{:08x}-{load}", self.run),
        };
        let site = &self.site;
        site.repository.write(&placed.name, files, signature)?;
        let metadata = site.runtime.block_on(site.load(&placed.name))?;
        check_metadata(&metadata, signature)?;
        Ok(UpstreamModel {
            placed: Arc::new(placed),
            signature: signature.clone(),
            encoding: self.encoding,
            platform: if metadata.platform.is_empty() {
                "onnx".to_owned()
            } else {
                metadata.platform
            },
            reloading: Arc::new(AtomicBool::new(false)),
        })
    }
}

impl Engine for Upstream {
    /// The server's, perhaps on a GPU.
    fn memory_percent(&self) -> u32 {
        0
    }

    fn load(
        &self,
        files: &LoadFiles,
        signature: &ModelSignature,
    ) -> Result<Arc<dyn LoadedModel>, EngineError> {
        let loaded = catch(|| self.load_checked(files, signature));
        let loaded = loaded.unwrap_or_else(|why| Err(EngineError::Panicked { why }))?;
        Ok(Arc::new(loaded))
    }
}

impl Site {
    /// Has the server load what lies in its repository, and waits until it is ready.
    async fn load(&self, name: &str) -> Result<Metadata, EngineError> {
        let timeout = self.load_timeout;
        let loading = async {
            self.server.load(name, timeout).await?;
            while !self.server.is_ready(name).await? {
                tokio::time::sleep(POLL_EVERY).await;
            }
            self.server.metadata(name).await
        };
        match tokio::time::timeout(timeout, loading).await {
            Ok(Ok(metadata)) => Ok(metadata),
            Ok(Err(CallError::Refused { status, text })) => Err(EngineError::Refused {
                why: cut(format!("the server says {status}: {text}")),
            }),
            Ok(Err(
                error @ (CallError::Unreachable(_) | CallError::Busy(_) | CallError::TimedOut(_)),
            )) => Err(EngineError::Unavailable {
                why: error.to_string(),
            }),
            Err(_) => Err(EngineError::Unavailable {
                why: format!("the server did not have it ready within {timeout:?}"),
            }),
        }
    }
}

/// What the server makes of the model must be what the signature promises. A server that
/// says nothing is believed: the smoke cases follow.
fn check_metadata(metadata: &Metadata, signature: &ModelSignature) -> Result<(), EngineError> {
    if metadata.inputs.is_empty() && metadata.outputs.is_empty() {
        return Ok(());
    }
    let names = |tensors: &'_ [MetadataTensor]| -> BTreeSet<String> {
        tensors.iter().map(|tensor| tensor.name.clone()).collect()
    };
    let (inputs, outputs) = (names(&metadata.inputs), names(&metadata.outputs));
    compare_names(
        inputs.iter().map(String::as_str).collect(),
        outputs.iter().map(String::as_str).collect(),
        signature,
    )?;
    let check = |side, specs: &[TensorSpec], tensors: &[MetadataTensor]| {
        for spec in specs {
            let tensor = tensors.iter().find(|tensor| tensor.name == spec.name);
            let tensor =
                tensor.ok_or_else(|| mismatch("a tensor of the signature is not in the graph"))?;
            tensor.found().check(side, spec)?;
        }
        Ok(())
    };
    check(Side::Input, &signature.inputs, &metadata.inputs)?;
    check(Side::Output, &signature.outputs, &metadata.outputs)
}

/// A name that the server may have loaded, and its files. Dropped: it is unloaded, and
/// they are removed.
struct Placed {
    site: Arc<Site>,
    name: String,
}

impl Drop for Placed {
    fn drop(&mut self) {
        let (site, name) = (Arc::clone(&self.site), std::mem::take(&mut self.name));
        self.site.runtime.spawn(async move {
            if let Err(error) = site.server.unload(&name, site.load_timeout).await {
                tracing::info!(%error, name, "the server did not unload a version");
            }
            let removing = tokio::task::spawn_blocking(move || site.repository.remove(&name));
            if let Ok(Err(error)) = removing.await {
                tracing::warn!(%error, "a version's files stay with the server");
            }
        });
    }
}

/// A model in the server's memory.
struct UpstreamModel {
    placed: Arc<Placed>,
    signature: ModelSignature,
    encoding: Encoding,
    platform: String,
    /// The server lost it, and has not got it back.
    reloading: Arc<AtomicBool>,
}

impl UpstreamModel {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        if self.reloading.load(Ordering::Relaxed) {
            let why = "the server has lost the model, which is being loaded anew";
            return Err(InferError::Unavailable(why.to_owned()));
        }
        let ordered = in_order(&self.signature, inputs)?;
        let body = wire::request(self.encoding, &self.signature, &ordered)?;
        let Placed { site, name } = &*self.placed;
        let asking = async {
            match site.server.infer(name, body, site.infer_timeout).await {
                Ok(answer) => Ok(answer),
                Err(failure) => Err(self.judge(failure).await),
            }
        };
        let answer = site.runtime.block_on(asking)?;
        wire::answer(&answer, &self.signature)
    }

    /// Whose fault it is.
    async fn judge(&self, failure: CallError) -> InferError {
        let Placed { site, name } = &*self.placed;
        let text = failure.to_string();
        let may_be_the_models = match failure {
            CallError::Busy(_) => return InferError::Unavailable(text),
            CallError::Unreachable(_) => false,
            CallError::TimedOut(_) | CallError::Refused { .. } => true,
        };
        if may_be_the_models && site.server.is_ready(name).await == Ok(true) {
            return InferError::Failed(text);
        }
        self.reload(&text);
        InferError::Unavailable(text)
    }

    /// Begins to bring it back, unless that is under way. It ends with the model.
    fn reload(&self, why: &str) {
        if self.reloading.swap(true, Ordering::Relaxed) {
            return;
        }
        let name = self.placed.name.clone();
        tracing::warn!(name, why, "the server has lost a model: loading it anew");
        let (placed, reloading) = (Arc::downgrade(&self.placed), Arc::clone(&self.reloading));
        self.placed.site.runtime.spawn(async move {
            while let Some(placed) = placed.upgrade() {
                let site = &placed.site;
                let is_back = match site.server.is_ready(&placed.name).await {
                    Ok(true) => true,
                    Ok(false) => site.load(&placed.name).await.is_ok(),
                    Err(_) => false,
                };
                if is_back {
                    tracing::info!(name, "the server has the model again");
                    reloading.store(false, Ordering::Relaxed);
                    return;
                }
                drop(placed);
                tokio::time::sleep(RELOAD_EVERY).await;
            }
        });
    }
}

impl LoadedModel for UpstreamModel {
    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        catch(|| self.run(inputs)).unwrap_or_else(|why| Err(InferError::Panicked(why)))
    }

    fn platform(&self) -> &str {
        &self.platform
    }
}

#[cfg(test)]
mod tests;
