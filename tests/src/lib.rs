//! rollcall-tests
