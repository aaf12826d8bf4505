//! rollcall-transport
