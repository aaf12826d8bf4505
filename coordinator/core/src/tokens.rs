//! Tokens and enrolment: who may speak at all.
//!
//! The core sees hashes of secrets only. An agent token takes in one node, once, before it
//! expires; the same request again gets the same answer, so that a lost answer does not
//! cost the token.

use rollcall_shared::digest::Digest;
use rollcall_shared::ids::NodeId;
use rollcall_shared::limits::{LABELS_MAX, TEXT_BYTES_MAX};
use rollcall_shared::time::Timestamp;

use crate::coordinator::{Coordinator, Turn};
use crate::effect::{Done, Refusal};
use crate::input::{Actor, Role, TokenKind};
use crate::record::Event;
use crate::state::Token;

const ASK_FOR_A_TOKEN: &str = "make a new one with `rollcall token create --kind agent`";

impl Coordinator {
    /// `event` is a [`Event::TokenCreated`], not yet checked.
    pub(crate) fn on_create_token(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        event: Event,
    ) -> Result<Done, Refusal> {
        let Event::TokenCreated {
            id,
            kind,
            name,
            expires_at,
            ..
        } = &event
        else {
            return Err(Refusal::Invalid("not a token".to_owned()));
        };
        if self.state.tokens.contains_key(id) {
            return Err(Refusal::Conflict(format!("there is a token {id} already")));
        }
        if id.is_empty() || id.len() > TEXT_BYTES_MAX || name.len() > TEXT_BYTES_MAX {
            return Err(Refusal::Invalid(format!(
                "a token's id and name have 1 to {TEXT_BYTES_MAX} bytes"
            )));
        }
        if *kind == TokenKind::Agent && expires_at.is_none() {
            return Err(Refusal::Invalid(
                "an agent token must expire: give it a time to live, e.g. --ttl 1h".to_owned(),
            ));
        }
        if expires_at.is_some_and(|end| end <= turn.now) {
            return Err(Refusal::Invalid(
                "the token would be over already".to_owned(),
            ));
        }
        self.record(turn, actor.clone(), event);
        Ok(Done::Done)
    }

    pub(crate) fn on_revoke_token(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        id: String,
    ) -> Result<Done, Refusal> {
        let Some(token) = self.state.tokens.get(&id) else {
            return Err(Refusal::NotFound(format!("there is no token {id}")));
        };
        if token.revoked_at.is_some() {
            return Ok(Done::Done);
        }
        let now = turn.now;
        let lasting_admins = self
            .state
            .tokens
            .iter()
            .filter(|(other, token)| **other != id && is_admin(token) && token.is_live(now));
        if is_admin(token) && token.is_live(now) && lasting_admins.count() == 0 {
            return Err(Refusal::Conflict(format!(
                "{id} is the last admin token: make another first, or nobody could"
            )));
        }
        self.record(turn, actor.clone(), Event::TokenRevoked { id });
        Ok(Done::Done)
    }

    /// `event` is a [`Event::NodeEnrolled`], not yet checked.
    pub(crate) fn on_enroll(
        &mut self,
        turn: &mut Turn,
        event: Event,
        secret_hash: Digest,
    ) -> Result<Done, Refusal> {
        let Event::NodeEnrolled {
            node,
            labels,
            key,
            token: id,
        } = &event
        else {
            return Err(Refusal::Invalid("not an enrolment".to_owned()));
        };
        let forbidden = |what: &str| Err(Refusal::Forbidden(format!("{what}: {ASK_FOR_A_TOKEN}")));
        let Some(token) = self
            .state
            .tokens
            .get(id)
            .filter(|t| t.secret_hash == secret_hash && t.kind == TokenKind::Agent)
        else {
            return forbidden("this is not an agent token of this fleet");
        };
        let known = self.state.nodes.get(node);
        if let Some(used_by) = &token.used_by {
            let again = known.is_some_and(|n| n.token == *id && n.key == *key && !n.revoked);
            if again {
                return Ok(Done::Enrolled { node: node.clone() });
            }
            return forbidden(&format!("this token was used up by {used_by}"));
        }
        if token.revoked_at.is_some() {
            return forbidden("this token was revoked");
        }
        if !token.is_live(turn.now) {
            return forbidden("this token has expired");
        }
        if known.is_some() {
            return Err(Refusal::Conflict(format!(
                "there is a node {node} already: choose another name with --node"
            )));
        }
        let long = |text: &String| text.len() > TEXT_BYTES_MAX;
        if labels.len() > LABELS_MAX || labels.iter().any(|(k, v)| long(k) || long(v)) {
            return Err(Refusal::Invalid(format!(
                "a node has at most {LABELS_MAX} labels of at most {TEXT_BYTES_MAX} bytes"
            )));
        }
        let node = node.clone();
        let actor = Actor::Agent { node: node.clone() };
        self.record(turn, actor, event);
        Ok(Done::Enrolled { node })
    }

    /// Who holds this operator token; `None` when it is unknown, over, or for agents.
    #[must_use]
    pub fn authenticate(&self, token: &str, secret_hash: Digest, now: Timestamp) -> Option<Actor> {
        let token = self.state.tokens.get(token)?;
        match &token.kind {
            TokenKind::Operator { roles } if token.secret_hash == secret_hash => {
                token.is_live(now).then(|| Actor::Operator {
                    name: token.name.clone(),
                    roles: roles.clone(),
                })
            }
            TokenKind::Operator { .. } | TokenKind::Agent => None,
        }
    }

    /// Whether a node may connect with the key of its certificate.
    ///
    /// # Errors
    /// Why not, for the node and the log.
    pub fn node_may_connect(&self, node: &NodeId, key: Digest) -> Result<(), String> {
        match self.state.nodes.get(node) {
            None => Err(format!("{node} is not enrolled here: {ASK_FOR_A_TOKEN}")),
            Some(entry) if entry.revoked => Err(format!("{node} was revoked")),
            Some(entry) if entry.key != key => {
                Err(format!("{node} is enrolled with another key than this one"))
            }
            Some(_) => Ok(()),
        }
    }
}

fn is_admin(token: &Token) -> bool {
    match &token.kind {
        TokenKind::Operator { roles } => roles.contains(&Role::Admin),
        TokenKind::Agent => false,
    }
}

#[cfg(test)]
mod tests;
