//! A copy of what the explorer is built from, in which faults are planted.
//!
//! The copy lies in `target/mutants` and its build folder with it, so that a run builds on
//! the one before. Files are only written when they differ: cargo goes by their times. The
//! workspace is cut down to the few members that the explorer needs; versions come from the
//! checkout's own `Cargo.lock`, and nothing is downloaded. A fault may make a core loop for
//! ever, so an exploration has a limit, and is killed when it is over.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rollcall_explorer::checkers::promise_name;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use super::FROM;
use super::report::{Caught, Shrunk};
use super::table::{Fault, Mutant};

/// Folders that the explorer is built from, without what lies in other crates.
const MEMBERS: [&str; 4] = [
    "shared",
    "coordinator/core",
    "agent/core",
    "simulations/explorer",
];
/// A crate of its own inside one of them.
const STRANGER: &str = "shared/transport";

/// Compiling counts as much as running here. Two steps of optimisation for what is edited
/// cost some seconds a mutant and save more in exploration.
const PROFILE: &str = "
[profile.dev]
opt-level = 1
debug = false
incremental = true

[profile.dev.package.\"*\"]
opt-level = 2
";

/// The copy.
#[derive(Debug)]
pub(super) struct Workshop {
    copy: PathBuf,
    build: PathBuf,
}

/// Which runs.
#[derive(Clone, Debug)]
pub(super) struct Exploration {
    pub(super) seeds: u64,
    pub(super) agents: u16,
    pub(super) seconds: u64,
    pub(super) sabotage: Option<String>,
    pub(super) shrink: bool,
}

/// What came of an exploration.
#[derive(Debug)]
pub(super) enum Found {
    /// It came to its end.
    Ended {
        /// What the first broken run broke; empty: nothing.
        caught: Vec<Caught>,
        /// That run, made smaller, where that was asked for.
        shrunk: Option<Shrunk>,
    },
    /// It did not, and was killed.
    TimedOut,
}

impl Exploration {
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    pub(super) fn hours(&self) -> f64 {
        self.seconds as f64 / 3_600.0
    }
}

/// A fault in the copy. Dropping it takes it out again.
#[derive(Debug)]
pub(super) struct Planted(Option<(PathBuf, String)>);

impl Drop for Planted {
    fn drop(&mut self) {
        if let Some((path, original)) = &self.0
            && let Err(error) = fs::write(path, original)
        {
            tracing::error!(%error, path = %path.display(), "a mutant could not be taken out");
        }
    }
}

impl Workshop {
    /// Makes the copy, or brings it up to date.
    pub(super) fn set_up(checkout: &Path) -> anyhow::Result<Self> {
        let folder = checkout.join("target/mutants");
        let workshop = Self {
            copy: folder.join("checkout"),
            build: folder.join("build"),
        };
        for member in MEMBERS {
            copy_folder(checkout, &workshop.copy, Path::new(member))?;
        }
        let manifest = fs::read_to_string(checkout.join("Cargo.toml"))?;
        write_if_changed(&workshop.copy.join("Cargo.toml"), &workspace(&manifest)?)?;
        let lock = fs::read_to_string(checkout.join("Cargo.lock"))?;
        workshop.cut_lock(&lock)?;
        Ok(workshop)
    }

    /// The checkout's lock file without what the copy does not need. Cargo does the cutting;
    /// that it added nothing is checked.
    fn cut_lock(&self, whole: &str) -> anyhow::Result<()> {
        let (path, kept) = (
            self.copy.join("Cargo.lock"),
            self.copy.join("Cargo.lock.whole"),
        );
        if path.is_file() && fs::read_to_string(&kept).is_ok_and(|kept| kept == whole) {
            return Ok(());
        }
        fs::write(&path, whole)?;
        self.cargo(&["update", "--workspace", "--offline"])?;
        let known = packages(whole)?;
        let strangers: Vec<_> = packages(&fs::read_to_string(&path)?)?
            .into_iter()
            .filter(|package| !known.contains(package))
            .collect();
        ensure!(
            strangers.is_empty(),
            "the copy's Cargo.lock has packages that the checkout's has not: {strangers:?}"
        );
        fs::write(&kept, whole)?;
        Ok(())
    }

    fn cargo(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(arguments)
            .current_dir(&self.copy)
            .env("CARGO_TARGET_DIR", &self.build)
            .env_remove("RUSTFLAGS")
            .stdin(Stdio::null())
            .output()
            .context(
                "cargo cannot be started: mutants are built from source, so a Rust toolchain must \
                 be in PATH",
            )?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            let lines: Vec<&str> = words.lines().collect();
            let tail = lines[lines.len().saturating_sub(30)..].join("\n");
            let (what, status) = (arguments.join(" "), output.status);
            bail!("cargo {what} failed ({status}):\n{tail}");
        }
        Ok(output)
    }

    /// Builds the explorer; gives how many seconds that took.
    #[expect(clippy::disallowed_methods, reason = "how long the build took")]
    pub(super) fn build(&self) -> anyhow::Result<f64> {
        let began = std::time::Instant::now();
        self.cargo(&[
            "build",
            "--offline",
            "--locked",
            "--quiet",
            "-p",
            "rollcall-explorer",
        ])?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// Puts the fault into the copy.
    pub(super) fn plant(&self, mutant: &Mutant) -> anyhow::Result<Planted> {
        let Fault::Source {
            file,
            find,
            replace,
        } = &mutant.fault
        else {
            return Ok(Planted(None));
        };
        mutant.check(&self.copy)?;
        let path = self.copy.join(file);
        let original = fs::read_to_string(&path)?;
        fs::write(&path, original.replacen(find.as_str(), replace, 1))?;
        Ok(Planted(Some((path, original))))
    }

    /// Explores up to the first broken run, for so long at most; gives what was seen broken in it.
    pub(super) fn explore(
        &self,
        exploration: &Exploration,
        limit: Duration,
    ) -> anyhow::Result<Found> {
        let mut command = Command::new(self.build.join("debug/rollcall-explorer"));
        command
            .args(["--from", &FROM.to_string()])
            .args(["--seeds", &exploration.seeds.to_string()])
            .args(["--agents", &exploration.agents.to_string()])
            .args(["--hours", &exploration.hours().to_string()]);
        if let Some(sabotage) = &exploration.sabotage {
            command.args(["--sabotage", sabotage]);
        }
        if exploration.shrink {
            command.arg("--shrink");
        }
        let output =
            output_within(&mut command, limit).context("the explorer cannot be started")?;
        let Some(output) = output else {
            return Ok(Found::TimedOut);
        };
        let summary: Summary = serde_json::from_slice(&output.stdout).with_context(|| {
            let words = String::from_utf8_lossy(&output.stderr);
            format!("the explorer ended with {}: {words}", output.status)
        })?;
        let first = summary.violations.into_iter().next();
        let caught = first.into_iter().flat_map(|run| {
            let seed = run.seed;
            run.violations.into_iter().map(move |violation| Caught {
                seed,
                promise: promise_name(violation.promise),
                what: violation.what,
            })
        });
        Ok(Found::Ended {
            caught: caught.collect(),
            shrunk: summary.shrunk,
        })
    }
}

/// What a command prints; `None` when it was killed after `limit`.
fn output_within(command: &mut Command, limit: Duration) -> io::Result<Option<Output>> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = Pid::from_child(&child);
    let (ended, end) = mpsc::sync_channel(1);
    std::thread::spawn(move || ended.send(child.wait_with_output()));
    match end.recv_timeout(limit) {
        Ok(output) => output.map(Some),
        Err(_) => {
            // Nobody has waited for it yet, so the number is still its own.
            kill_process(pid, Signal::KILL)?;
            let _ = end.recv();
            Ok(None)
        }
    }
}

/// What the explorer prints, as far as it is needed here.
#[derive(Deserialize)]
struct Summary {
    violations: Vec<Run>,
    shrunk: Option<Shrunk>,
}

#[derive(Deserialize)]
struct Run {
    seed: u64,
    violations: Vec<Violation>,
}

#[derive(Deserialize)]
struct Violation {
    promise: u8,
    what: String,
}

/// The checkout's workspace, cut down.
fn workspace(manifest: &str) -> anyhow::Result<String> {
    let mut manifest: toml::Table = manifest.parse().context("Cargo.toml cannot be read")?;
    manifest.remove("profile");
    let workspace = manifest
        .get_mut("workspace")
        .and_then(toml::Value::as_table_mut)
        .context("Cargo.toml has no [workspace]")?;
    workspace.remove("exclude");
    let members = MEMBERS.map(|member| toml::Value::String(member.to_owned()));
    workspace.insert("members".to_owned(), toml::Value::Array(members.to_vec()));
    Ok(toml::to_string(&manifest)? + PROFILE)
}

/// Name, version and checksum of each package of a lock file.
fn packages(lock: &str) -> anyhow::Result<BTreeSet<(String, String, Option<String>)>> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
        checksum: Option<String>,
    }
    let lock: Lock = toml::from_str(lock).context("Cargo.lock cannot be read")?;
    let packages = lock.package.into_iter();
    Ok(packages.map(|p| (p.name, p.version, p.checksum)).collect())
}

/// Makes `to/folder` hold what `from/folder` holds, and nothing else.
fn copy_folder(from: &Path, to: &Path, folder: &Path) -> anyhow::Result<()> {
    let (source, target) = (from.join(folder), to.join(folder));
    fs::create_dir_all(&target)?;
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(&source).with_context(|| format!("{}", source.display()))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if path == Path::new(STRANGER) {
            continue;
        }
        names.insert(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(from, to, &path)?;
        } else {
            let text = fs::read_to_string(entry.path())
                .with_context(|| format!("{} is no text", entry.path().display()))?;
            write_if_changed(&to.join(&path), &text)?;
        }
    }
    for entry in fs::read_dir(&target)? {
        let entry = entry?;
        if names.contains(&entry.file_name()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn write_if_changed(path: &Path, text: &str) -> anyhow::Result<()> {
    if !fs::read_to_string(path).is_ok_and(|held| held == text) {
        fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

/// The checkout that a folder is in.
///
/// # Errors
/// When it is in none.
pub fn checkout_of(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut above = folder.ancestors();
    let found = above.find(|folder| {
        folder.join("Cargo.lock").is_file()
            && MEMBERS
                .iter()
                .all(|m| folder.join(m).join("Cargo.toml").is_file())
    });
    found.map(Path::to_owned).with_context(|| {
        format!(
            "{} is in no checkout of Rollcall: mutants are planted in its source, so run this there",
            folder.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_no_checkout_is_refused_with_what_to_do() {
        let error = checkout_of(Path::new("/")).unwrap_err().to_string();
        assert!(error.contains("run this there"), "{error}");
    }

    #[test]
    fn a_command_that_loops_for_ever_is_killed_and_one_that_ends_is_heard() {
        let shell = |script: &str, limit| {
            let mut command = Command::new("sh");
            output_within(command.args(["-c", script]), limit).unwrap()
        };
        let endless = shell("while :; do :; done", Duration::from_millis(50));
        assert!(endless.is_none(), "{endless:?}");
        let output = shell("echo words; echo more >&2; exit 3", Duration::MAX).unwrap();
        assert_eq!(
            (output.status.code(), &output.stdout[..], &output.stderr[..]),
            (Some(3), &b"words\n"[..], &b"more\n"[..])
        );
    }

    #[test]
    fn the_copied_workspace_has_the_few_members_and_the_same_dependencies() {
        let manifest = "[workspace]\nmembers = [\"a\"]\nexclude = [\"fuzz\"]\n\
                        [workspace.dependencies]\nserde = \"1\"\n[profile.release]\nlto = true\n";
        let cut: toml::Table = workspace(manifest).unwrap().parse().unwrap();
        assert_eq!(
            cut["workspace"]["dependencies"]["serde"].as_str(),
            Some("1")
        );
        assert_eq!(cut["workspace"]["members"].as_array().unwrap().len(), 4);
        assert!(cut["profile"].get("release").is_none());
    }

    #[test]
    fn a_copy_follows_its_folder_and_leaves_what_did_not_change_alone() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |path: &str, text: &str| fs::write(from.path().join(path), text).unwrap();
        fs::create_dir_all(from.path().join("shared/transport")).unwrap();
        write("shared/a.rs", "a");
        write("shared/b.rs", "b");
        write("shared/transport/c.rs", "c");
        let copy = || copy_folder(from.path(), to.path(), Path::new("shared")).unwrap();
        copy();
        let time = |path: &str| {
            fs::metadata(to.path().join(path))
                .unwrap()
                .modified()
                .unwrap()
        };
        let before = time("shared/a.rs");
        fs::remove_file(from.path().join("shared/b.rs")).unwrap();
        copy();
        assert_eq!(time("shared/a.rs"), before);
        assert!(!to.path().join("shared/b.rs").exists());
        assert!(!to.path().join("shared/transport").exists());
    }
}
