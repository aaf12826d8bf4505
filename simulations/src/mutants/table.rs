//! The mutants: what each takes away, and who should notice.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde::Deserialize;

const TABLE: &str = include_str!("table.toml");

/// A fault to plant.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// Its name.
    pub name: String,
    /// What it breaks, in words.
    pub breaks: String,
    /// What should be seen: `promise 3`, `liveness`, or `assertion` (a core stops itself).
    /// One of them is enough.
    pub expect: Vec<String>,
    /// Within how many seeds.
    pub seeds: u64,
    /// How many agents each run has.
    #[serde(default = "five")]
    pub agents: u16,
    /// How long faults rage in each run, in simulated seconds.
    #[serde(default = "three_minutes")]
    pub seconds: u64,
    /// How it is planted.
    pub fault: Fault,
}

/// Where the fault is.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// In the source that ships.
    Source {
        /// The file, from the root of the checkout.
        file: String,
        /// Text that stands in it exactly once.
        find: String,
        /// What stands there instead.
        replace: String,
    },
    /// In the simulated shells, which are not what ships.
    World {
        /// The guard that they leave out, as `--sabotage` names it.
        sabotage: String,
    },
}

const fn five() -> u16 {
    5
}

const fn three_minutes() -> u64 {
    180
}

/// All mutants.
///
/// # Errors
/// When the table is damaged.
pub fn table() -> anyhow::Result<Vec<Mutant>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        mutant: Vec<Mutant>,
    }
    let table: Table = toml::from_str(TABLE).context("the table of mutants is damaged")?;
    Ok(table.mutant)
}

impl Mutant {
    /// Holds the entry against the checkout.
    ///
    /// # Errors
    /// When its text is not there exactly once: the source has moved on, the table must follow.
    pub fn check(&self, checkout: &Path) -> anyhow::Result<()> {
        let Fault::Source { file, find, .. } = &self.fault else {
            return Ok(());
        };
        let path = checkout.join(file);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let times = text.matches(find.as_str()).count();
        if times != 1 {
            bail!(
                "the mutant {} no longer applies: its text stands {times} times in {file}, and \
                 must stand there once: {find:?}",
                self.name
            );
        }
        Ok(())
    }
}
