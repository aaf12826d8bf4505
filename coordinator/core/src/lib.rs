//! rollcall-coordinator-core
