//! The binary `rollcall-agent`; everything is in the library, because the demo runs
//! the same agent under its own name.

use std::process::ExitCode;

fn main() -> ExitCode {
    rollcall_agent::main_with(std::env::args_os())
}
