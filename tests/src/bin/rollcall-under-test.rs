//! The shipping `rollcall` and `rollcall-agent` in one executable, for the tests of this package.

use std::process::ExitCode;

fn main() -> ExitCode {
    rollcall_simulations::multicall::dispatch().unwrap_or_else(|| {
        eprintln!("usage: rollcall-under-test rollcall|rollcall-agent ARGUMENTS...");
        ExitCode::from(2)
    })
}
