//! `rollcall kpi`: outcomes of a version, from wherever they are known.

use clap::Subcommand;
use rollcall_shared::ids::ModelName;
use rollcall_shared::version::Version;

use super::CliError;
use super::client::Client;
use super::output::Output;
use crate::http::outcomes::KpiBody;

/// Outcomes of versions on trial.
#[derive(Debug, Subcommand)]
pub(super) enum Kpi {
    /// Add an outcome to the evidence of a model's live rollout.
    ///
    /// It counts in the stage that is under way, for the candidate or for stable. Outcomes of
    /// single requests come better with `rollcall label push`.
    Record {
        /// The model.
        #[arg(long)]
        model: ModelName,
        /// The version that it is about: the rollout's candidate, or stable.
        #[arg(long)]
        version: Version,
        /// The KPI, as the plan's policy names it.
        #[arg(long)]
        name: String,
        /// What it was.
        #[arg(long, allow_negative_numbers = true)]
        value: f64,
        /// How many times it was seen.
        #[arg(long, default_value_t = 1)]
        count: u64,
    },
}

impl Kpi {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let Self::Record {
            model,
            version,
            name,
            value,
            count,
        } = self;
        if !value.is_finite() {
            return Err(CliError::Usage(format!("{value} is not a number")));
        }
        let body = KpiBody {
            version,
            name,
            value,
            count,
        };
        let recorded: KpiBody = client.post(&format!("/models/{model}/kpis"), &body).await?;
        output.show(&recorded, |recorded| {
            format!(
                "Recorded {} = {} ({} times) for {model}@{}.",
                recorded.name, recorded.value, recorded.count, recorded.version
            )
        })
    }
}
