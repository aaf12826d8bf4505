//! rollcall-agent-core
