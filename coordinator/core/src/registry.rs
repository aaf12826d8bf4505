//! The registry: versions are pushed once, never changed, archived and restored.

use rollcall_shared::ids::ModelName;
use rollcall_shared::limits::{TEXT_BYTES_MAX, VERSIONS_PER_MODEL_MAX};
use rollcall_shared::manifest::{Manifest, SignedManifest};
use rollcall_shared::version::Version;

use crate::coordinator::{Coordinator, Turn};
use crate::effect::{Done, Refusal};
use crate::input::Actor;
use crate::record::Event;
use crate::state::{Model, RegisteredVersion};

/// Free text, cut to its bound at a character. For texts that must not keep a command
/// from being carried out.
pub(crate) fn cut(mut text: String) -> String {
    while text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    }
    text
}

impl Coordinator {
    pub(crate) fn on_register(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        signed: SignedManifest,
        manifest: &Manifest,
    ) -> Result<Done, Refusal> {
        manifest
            .validate()
            .map_err(|error| Refusal::Invalid(error.to_string()))?;
        let version = signed.version_ref(manifest.version);
        let name = format!("{}@{}", manifest.model, manifest.version);
        if let Some(model) = self.state.models.get(&manifest.model) {
            if model.is_withdrawn(manifest.version) {
                return Err(Refusal::Conflict(format!(
                    "{name} was withdrawn, and a withdrawal is for good: push a new version number"
                )));
            }
            match model.versions.get(&manifest.version) {
                Some(known) if known.version == version => return Ok(Done::Done),
                Some(_) => {
                    return Err(Refusal::Conflict(format!(
                        "{name} is already registered, and versions never change: push a new \
                         version number"
                    )));
                }
                None => {}
            }
            let live = model.versions.values().filter(|v| !v.archived).count();
            if live >= VERSIONS_PER_MODEL_MAX {
                return Err(Refusal::Conflict(format!(
                    "{} has {VERSIONS_PER_MODEL_MAX} versions: archive some first",
                    manifest.model
                )));
            }
        }
        let event = Event::VersionRegistered {
            model: manifest.model.clone(),
            version,
            signed,
        };
        self.record(turn, actor.clone(), event);
        Ok(Done::Done)
    }

    pub(crate) fn on_archive(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        model: ModelName,
        version: Version,
    ) -> Result<Done, Refusal> {
        let (entry, registered) = self.registered(&model, version)?;
        let candidate = self.state.live_rollout(&model).map(|r| r.candidate);
        let in_use = [entry.stable, entry.previous, candidate].contains(&Some(registered.version));
        if in_use {
            return Err(Refusal::Conflict(format!(
                "{model}@{version} is in use (stable, the one before it, or on trial)"
            )));
        }
        if registered.archived {
            return Ok(Done::Done);
        }
        let event = Event::VersionArchived { model, version };
        self.record(turn, actor.clone(), event);
        Ok(Done::Done)
    }

    pub(crate) fn on_restore(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        model: ModelName,
        version: Version,
    ) -> Result<Done, Refusal> {
        let (entry, registered) = self.registered(&model, version)?;
        if entry.is_withdrawn(version) {
            return Err(Refusal::Conflict(format!(
                "{model}@{version} was withdrawn, and a withdrawal is for good"
            )));
        }
        if !registered.archived {
            return Ok(Done::Done);
        }
        let event = Event::VersionRestored { model, version };
        self.record(turn, actor.clone(), event);
        Ok(Done::Done)
    }

    pub(crate) fn registered(
        &self,
        model: &ModelName,
        version: Version,
    ) -> Result<(&Model, &RegisteredVersion), Refusal> {
        let entry = self.state.models.get(model);
        entry
            .and_then(|m| Some((m, m.versions.get(&version)?)))
            .ok_or_else(|| Refusal::NotFound(format!("{model}@{version} is not registered")))
    }
}
