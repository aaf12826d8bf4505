//! rollcall-simulations
