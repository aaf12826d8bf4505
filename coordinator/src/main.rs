//! `rollcall`: the coordinator and the operators' CLI.

use std::process::ExitCode;

fn main() -> ExitCode {
    rollcall_coordinator::main_with(std::env::args_os())
}
