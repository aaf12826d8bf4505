//! `rollcall token`: who may enrol and who may command.

use clap::{Subcommand, ValueEnum};
use reqwest::Method;
use rollcall_coordinator_core::input::{Role, TokenKind};
use rollcall_coordinator_core::view::TokenView;
use serde_json::json;

use super::CliError;
use super::client::Client;
use super::output::{Output, joined, or_dash, table};
use crate::http::tokens::{CreatedToken, NewToken, NewTokenKind};

/// Tokens of nodes and operators.
#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a token; it is shown this once.
    Create {
        /// What it is for.
        #[arg(long, value_enum)]
        kind: Kind,
        /// Operators: viewer, operator, promoter, admin, or a role that plans name in
        /// approvals; repeat for several.
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<String>,
        /// Who has it.
        #[arg(long)]
        name: Option<String>,
        /// How long it lasts, e.g. 1h. Agents: 1h; operators: for ever.
        #[arg(long)]
        ttl: Option<String>,
    },
    /// List them, without their secrets.
    List,
    /// End one now.
    Revoke {
        /// Its id, as `token list` shows it.
        id: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Kind {
    /// Lets one node enrol, once.
    Agent,
    /// Lets a person or a script use this CLI.
    Operator,
}

impl Token {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        match self {
            Self::Create {
                kind,
                roles,
                name,
                ttl,
            } => {
                let kind = match kind {
                    Kind::Agent => NewTokenKind::Agent,
                    Kind::Operator => NewTokenKind::Operator,
                };
                if kind == NewTokenKind::Operator && roles.is_empty() {
                    return Err(CliError::Usage(
                        "an operator's token needs --role: viewer, operator, promoter, admin, or \
                         an approver's"
                            .to_owned(),
                    ));
                }
                let new = NewToken {
                    kind,
                    roles: roles.into_iter().collect(),
                    name,
                    ttl,
                };
                let created: CreatedToken = client.post("/tokens", &new).await?;
                output.show(&created, |created| created.token.clone())
            }
            Self::List => {
                let tokens: Vec<TokenView> = client.get("/tokens").await?;
                output.show(&tokens, |tokens| {
                    table(
                        ["id", "name", "kind", "roles", "created", "expires", "state"],
                        tokens.iter().map(row),
                    )
                })
            }
            Self::Revoke { id } => {
                if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                    return Err(CliError::Usage(format!("{id:?} is not a token's id")));
                }
                client
                    .send(client.request(Method::DELETE, &format!("/tokens/{id}")))
                    .await?;
                output.show(&json!({ "id": id, "revoked": true }), |_| {
                    format!("Revoked {id}.")
                })
            }
        }
    }
}

fn row(token: &TokenView) -> [String; 7] {
    let (kind, roles) = match &token.kind {
        TokenKind::Agent => ("agent", "-".to_owned()),
        TokenKind::Operator { roles } => ("operator", joined(roles.iter().map(role_name))),
    };
    let state = match (&token.revoked_at, &token.used_by) {
        (Some(at), _) => format!("revoked {at}"),
        (None, Some(node)) => format!("used by {node}"),
        (None, None) => "valid".to_owned(),
    };
    [
        token.id.clone(),
        token.name.clone(),
        kind.to_owned(),
        roles,
        token.created_at.to_string(),
        or_dash(token.expires_at),
        state,
    ]
}

fn role_name(role: &Role) -> String {
    match role {
        Role::Viewer => "viewer".to_owned(),
        Role::Operator => "operator".to_owned(),
        Role::Promoter => "promoter".to_owned(),
        Role::Admin => "admin".to_owned(),
        Role::Approver(name) => name.clone(),
    }
}
