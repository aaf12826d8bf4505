//! What this node can answer for, in no protocol's words: REST and gRPC both tell it.
//!
//! It reads the routes at the moment of the question and keeps nothing.

use rollcall_agent_core::route::CandidateUsage;
use rollcall_shared::ids::{ModelName, NameError};
use rollcall_shared::manifest::ModelSignature;
use rollcall_shared::version::{Version, VersionError};

use super::infer::Inference;
use crate::prepare::PreparedModel;
use crate::routes::RouteEntry;

/// How the server calls itself.
pub const SERVER: &str = "rollcall-agent";
/// Its release.
pub const SERVER_VERSION: &str = env!("CARGO_PKG_VERSION");

/// That the index can be asked for, in the protocol's terms.
pub const INDEX_EXTENSION: &str = "model_repository(index)";

/// Why a question about models has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say what the fields are")]
pub enum CatalogRefusal {
    #[error(transparent)]
    NoModelName(#[from] NameError),
    #[error(transparent)]
    NoVersion(#[from] VersionError),
    #[error("this node has no model {model}")]
    UnknownModel { model: ModelName },
    #[error("version {version} of {model} does not answer on this node")]
    UnknownVersion { model: ModelName, version: Version },
    #[error("{model} is not ready on this node")]
    NotReady { model: ModelName },
    #[error(
        "versions of {model} come and go by rollouts only: ask the coordinator \
         (rollcall rollout start, rollcall rollback)"
    )]
    ByRolloutOnly { model: String },
}

/// A model that answers.
#[derive(Clone, Debug)]
pub struct Answering {
    /// Its name.
    pub model: ModelName,
    /// The versions that answer clients now, stable first; at least one.
    pub versions: Vec<Version>,
    /// What runs the first one, in the protocol's terms.
    pub platform: String,
    /// The first one's, which is the contract with clients.
    pub signature: ModelSignature,
}

/// One line of the repository's index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexRow {
    /// The model.
    pub model: ModelName,
    /// The version; `None`: none of the model is here.
    pub version: Option<Version>,
    /// Why clients get no answer from it; `None`: they do.
    pub unavailable: Option<&'static str>,
}

impl IndexRow {
    /// As the protocol says it.
    #[must_use]
    pub const fn state(&self) -> &'static str {
        match self.unavailable {
            None => "READY",
            Some(_) => "UNAVAILABLE",
        }
    }

    /// The version as text; empty where there is none.
    #[must_use]
    pub fn version_text(&self) -> String {
        self.version.map_or_else(String::new, |v| v.to_string())
    }
}

/// Whether at least one model can answer.
#[must_use]
pub fn is_ready(inference: &Inference) -> bool {
    let routes = inference.routes().all();
    routes
        .values()
        .any(|entry| !answering(inference, entry).is_empty())
}

/// The model `name`, or one `version` of it.
///
/// # Errors
/// When it is unknown here, or nothing answers for it now.
pub fn model(
    inference: &Inference,
    name: &str,
    version: Option<&str>,
) -> Result<Answering, CatalogRefusal> {
    let model: ModelName = name.parse()?;
    let version: Option<Version> = version.map(str::parse).transpose()?;
    let Some(entry) = inference.routes().get(&model) else {
        return Err(CatalogRefusal::UnknownModel { model });
    };
    let mut answering = answering(inference, &entry);
    if let Some(version) = version {
        answering.retain(|prepared| prepared.version.version == version);
    }
    match (answering.first(), version) {
        (Some(first), _) => Ok(Answering {
            model,
            versions: answering.iter().map(|one| one.version.version).collect(),
            platform: first.loaded.platform().to_owned(),
            signature: first.manifest.signature.clone(),
        }),
        (None, Some(version)) => Err(CatalogRefusal::UnknownVersion { model, version }),
        (None, None) => Err(CatalogRefusal::NotReady { model }),
    }
}

/// Every version that is loaded, model by model; `ready_only`: of those, who answers clients.
#[must_use]
pub fn index(inference: &Inference, ready_only: bool) -> Vec<IndexRow> {
    let mut rows = Vec::new();
    for (model, entry) in inference.routes().all().iter() {
        let row = |version, unavailable| IndexRow {
            model: model.clone(),
            version,
            unavailable,
        };
        let answering = answering(inference, entry);
        if answering.is_empty() {
            rows.push(row(None, Some("no version is ready")));
        }
        let answers = |prepared: &PreparedModel| {
            let mut all = answering.iter();
            all.any(|one| one.version == prepared.version)
        };
        rows.extend(
            answering
                .iter()
                .map(|one| row(Some(one.version.version), None)),
        );
        let candidate = entry.candidate.iter().map(|held| &held.arm.prepared);
        let hidden = candidate.filter(|prepared| !answers(prepared));
        rows.extend(hidden.map(|prepared| {
            row(
                Some(prepared.version.version),
                Some("loaded, answers no clients"),
            )
        }));
    }
    rows.retain(|row| !ready_only || row.unavailable.is_none());
    rows
}

/// The versions that answer clients now, stable first.
fn answering<'a>(inference: &Inference, entry: &'a RouteEntry) -> Vec<&'a PreparedModel> {
    let now = inference.now();
    let in_use = entry.route.candidate.as_ref().is_some_and(|candidate| {
        let answers = match candidate.usage {
            CandidateUsage::Canary(_) => true,
            CandidateUsage::Shadow(_) => false,
        };
        answers && now < candidate.lease_until
    });
    let stable = entry.stable.iter().map(|arm| &*arm.prepared);
    let candidate = entry
        .candidate
        .iter()
        .filter(|_| in_use)
        .map(|held| &*held.arm.prepared);
    stable.chain(candidate).collect()
}
