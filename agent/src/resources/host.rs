//! CPU, memory and disk, of the host and of this process.
//!
//! Only what is shown is read: four files under `/proc` and one `statvfs`.

use std::path::PathBuf;

use rollcall_shared::report::Resources;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// Reads the host and this process.
#[derive(Debug)]
pub struct Host {
    system: Option<System>,
    pid: Option<Pid>,
    dir: PathBuf,
}

impl Host {
    /// Opens them. `dir`: whose disk is looked at.
    #[must_use]
    pub fn open(dir: PathBuf) -> Self {
        let system = System::new()
            .inspect_err(|error| tracing::info!(?error, "no CPU and memory figures on this host"))
            .ok();
        Self {
            system,
            pid: sysinfo::get_current_pid().ok(),
            dir,
        }
    }

    /// One sample. What cannot be read is zero.
    pub fn sample(&mut self) -> Resources {
        let mut resources = Resources::default();
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory();
            resources.cpu_percent = system.global_cpu_usage();
            resources.memory_used = system.used_memory();
            resources.memory_total = system.total_memory();
            if let Some(pid) = self.pid {
                let kind = ProcessRefreshKind::nothing()
                    .with_cpu()
                    .with_memory()
                    .without_tasks();
                system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, kind);
                if let Some(process) = system.process(pid) {
                    resources.process_memory = process.memory();
                    resources.process_cpu_percent = process.cpu_usage();
                }
            }
        }
        if let Ok(disk) = rustix::fs::statvfs(&self.dir) {
            resources.disk_free = disk.f_bavail.saturating_mul(disk.f_frsize);
            resources.disk_total = disk.f_blocks.saturating_mul(disk.f_frsize);
        }
        resources
    }
}

/// Bytes that this process could still take: of the host, and of its control group where
/// that has a limit. `None`: the host does not say.
#[must_use]
pub fn memory_available() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    let host = system.available_memory();
    let group = sysinfo::get_current_pid().ok().and_then(|pid| {
        let kind = ProcessRefreshKind::nothing().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, kind);
        // What files fill of a group's memory makes room when it is needed.
        let limits = system.process(pid)?.cgroup_limits()?;
        Some(limits.total_memory.saturating_sub(limits.rss))
    });
    Some(group.map_or(host, |group| host.min(group)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_shows_a_living_process_on_a_real_host() {
        let sample = Host::open(std::env::temp_dir()).sample();
        assert!(sample.memory_total > sample.memory_used && sample.memory_used > 0);
        assert!(sample.process_memory > 0);
        assert!((1..=sample.memory_total).contains(&memory_available().unwrap()));
        assert!(sample.disk_total >= sample.disk_free && sample.disk_total > 0);
    }
}
