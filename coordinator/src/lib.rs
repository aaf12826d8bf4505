//! rollcall-coordinator
