//! One executable that can be `rollcall` and `rollcall-agent` too, so that the
//! demo and the chaos runs start the shipping programs as processes of their own
//! without having to find or build other binaries.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// A door behind which nothing is: see [`crate::storm`].
pub(crate) const BARE_DOOR: &str = "bare-door";
/// An agent's serving half, with candidates that misbehave: see [`crate::isolation`].
const AGENT_UNDER_TEST: &str = "agent-under-test";

/// An executable whose `main` begins with [`dispatch`].
#[derive(Clone, Debug)]
pub struct Programs(PathBuf);

impl Programs {
    /// The programs in the executable at `path`.
    #[must_use]
    pub const fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The programs in this executable.
    ///
    /// # Errors
    /// When the path of this executable cannot be told.
    pub fn here() -> std::io::Result<Self> {
        std::env::current_exe().map(Self)
    }

    /// A command that is the coordinator and operator CLI.
    #[must_use]
    pub fn rollcall(&self) -> Command {
        self.command("rollcall")
    }

    /// A command that is the agent.
    #[must_use]
    pub fn agent(&self) -> Command {
        self.command("rollcall-agent")
    }

    /// A command that shakes hands and does nothing else.
    pub(crate) fn bare_door(&self) -> Command {
        self.command(BARE_DOOR)
    }

    /// A command that serves, with a candidate that misbehaves.
    pub(crate) fn agent_under_test(&self) -> Command {
        self.command(AGENT_UNDER_TEST)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.0);
        command.arg(name);
        command
    }
}

/// If the first argument names a program, be that program to the end.
#[must_use]
pub fn dispatch() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next()?;
    if first == BARE_DOOR {
        return Some(crate::storm::floor::open_door(arguments));
    }
    if first == AGENT_UNDER_TEST {
        return Some(crate::isolation::ground::open(arguments));
    }
    let rest = |name: &'static str| std::iter::once(OsString::from(name)).chain(arguments);
    match first.to_str()? {
        "rollcall" => Some(rollcall_coordinator::main_with(rest("rollcall"))),
        "rollcall-agent" => Some(rollcall_agent::main_with(rest("rollcall-agent"))),
        _ => None,
    }
}
