//! rollcall-agent
