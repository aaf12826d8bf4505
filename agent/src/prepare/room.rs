//! Whether there is memory for one more version of a model.
//!
//! Memory that ends takes the whole process, and stable with it. So a version that comes
//! beside one that serves is not loaded when it would leave less than a reserve. The first
//! version of a model is: there is nothing that it could take away.

use crate::engine::EngineError;

/// What a version would take, and what there is. In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Its files.
    pub(super) files: u64,
    /// Percent of its files that the engine takes for it in memory.
    pub(super) percent: u32,
    /// What the host has.
    pub(super) available: u64,
    /// What must be left.
    pub(super) reserve: u64,
}

impl Room {
    /// # Errors
    /// When it does not fit.
    pub(super) fn check(self) -> Result<(), EngineError> {
        let needs = self.files.saturating_mul(self.percent.into()) / 100;
        if needs == 0 || needs.saturating_add(self.reserve) <= self.available {
            return Ok(());
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        Err(EngineError::NoRoom {
            needs_mib: mib(needs),
            reserve_mib: mib(self.reserve),
            available_mib: self.available >> 20,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_beside_the_reserve_is_loaded_and_no_more() {
        let room = Room {
            files: 100 << 20,
            percent: 230,
            available: 330 << 20,
            reserve: 100 << 20,
        };
        assert!(room.check().is_ok());
        let short = Room {
            available: room.available - 1,
            ..room
        };
        let text = short.check().unwrap_err().to_string();
        assert!(
            text.contains("230 MiB") && text.contains("329 MiB"),
            "{text}"
        );
        assert!(text.contains("engine.memory_reserve_mib"), "{text}");
        // Another process has it in its memory.
        assert!(
            Room {
                percent: 0,
                ..short
            }
            .check()
            .is_ok()
        );
        let huge = Room {
            files: u64::MAX,
            ..room
        };
        assert!(huge.check().is_err());
    }
}
