//! Disks of their own that can be full, and files that are damaged, copied and put back.
//!
//! A full disk is a small tmpfs with a file that takes what is left. Mounting needs root;
//! without it there are no such disks, and the run says so. (The other way, a limit on file
//! sizes, ends a process with a signal: that is a crash, not a full disk.)

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::schedule::Damage;
use crate::seed::Draws;

/// Bits flipped in a damaged file.
const FLIPS: usize = 24;
/// The journal's files.
const JOURNAL: [&str; 3] = ["journal.db", "journal.db-wal", "journal.db-shm"];

/// Mounted disks; gone when dropped.
#[derive(Debug, Default)]
pub(super) struct Disks(Vec<PathBuf>);

impl Disks {
    /// Mounts a disk of its own at each folder, all or none. `None`: that is not permitted here.
    pub(super) fn mount(folders: &[PathBuf], mib: u32) -> Result<Option<Self>> {
        let mut disks = Self::default();
        for folder in folders {
            fs::create_dir_all(folder)?;
            let mut mount = Command::new("mount");
            mount
                .args(["-t", "tmpfs", "-o"])
                .arg(format!("size={mib}m,mode=0700"))
                .arg("rollcall-chaos")
                .arg(folder)
                .stdin(Stdio::null())
                .stderr(Stdio::null());
            if !mount.status().is_ok_and(|status| status.success()) {
                return Ok(None);
            }
            disks.0.push(folder.clone());
        }
        Ok(Some(disks))
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for folder in &self.0 {
            // Lazily: a process that still has a file open must not keep the mount.
            let _ = Command::new("umount").arg("-l").arg(folder).status();
        }
    }
}

/// Takes all that is left of a disk.
pub(super) fn fill(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("filler");
    let mut filler = fs::File::create(&path)?;
    // In ever smaller pieces, to the last block.
    for bytes in [1 << 20, 4_096] {
        let piece = vec![0; bytes];
        while filler.write_all(&piece).is_ok() {}
    }
    Ok(path)
}

/// Damages a file as a disk does. Gives where, or `None` where there is nothing to damage.
pub(super) fn damage(path: &Path, damage: Damage) -> Result<Option<String>> {
    let Ok(mut file) = fs::File::options().read(true).write(true).open(path) else {
        return Ok(None);
    };
    let length = file.metadata()?.len();
    let Some(size) = usize::try_from(length).ok().filter(|size| *size > 0) else {
        return Ok(None);
    };
    let mut draws = Draws::child(damage.seed, "damage");
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if damage.flips {
        for _ in 0..FLIPS {
            let at = SeekFrom::Start(draws.below(size) as u64);
            let mut byte = [0];
            file.seek(at)?;
            file.read_exact(&mut byte)?;
            file.seek(at)?;
            file.write_all(&[byte[0] ^ (1 << draws.below(8))])?;
        }
        return Ok(Some(format!(
            "{FLIPS} bits of {name} ({size} bytes) flipped"
        )));
    }
    let cut = 1 + draws.below(size.min(65_536));
    file.set_len(length - cut as u64)?;
    Ok(Some(format!("{cut} of {size} bytes of {name} cut off")))
}

/// Damages the largest file below a folder.
pub(super) fn damage_largest(folder: &Path, how: Damage) -> Result<Option<String>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                files.push((metadata.len(), entry.path()));
            }
        }
    }
    match files.into_iter().max() {
        Some((_, largest)) => damage(&largest, how),
        None => Ok(None),
    }
}

/// A copy of a journal that nobody has open.
#[derive(Debug)]
pub(super) struct Backup(PathBuf);

impl Backup {
    /// Copies the journal in `folder` to a new folder `to`.
    pub(super) fn of(folder: &Path, to: PathBuf) -> Result<Self> {
        // The log of an earlier copy must not meet the database of this one.
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        fs::create_dir_all(&to)?;
        let mut copied = 0;
        for name in JOURNAL {
            if folder.join(name).exists() {
                fs::copy(folder.join(name), to.join(name))
                    .with_context(|| format!("cannot copy {name}"))?;
                copied += 1;
            }
        }
        ensure!(copied > 0, "there is no journal in {}", folder.display());
        Ok(Self(to))
    }

    /// Puts the copy in place of what is in `folder`.
    pub(super) fn restore(&self, folder: &Path) -> Result<()> {
        for name in JOURNAL {
            match fs::remove_file(folder.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                Ok(()) | Err(_) => {}
            }
            if self.0.join(name).exists() {
                fs::copy(self.0.join(name), folder.join(name))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_what_the_seed_says_and_a_backup_undoes_it() {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("journal.db");
        let whole = vec![7; 10_000];
        fs::write(&journal, &whole).unwrap();
        let backup = Backup::of(dir.path(), dir.path().join("copy")).unwrap();
        for flips in [true, false] {
            let how = Damage { flips, seed: 3 };
            let mut damaged = Vec::new();
            for _ in 0..2 {
                backup.restore(dir.path()).unwrap();
                assert_eq!(fs::read(&journal).unwrap(), whole);
                assert!(damage(&journal, how).unwrap().is_some());
                damaged.push(fs::read(&journal).unwrap());
            }
            assert_ne!(damaged[0], whole);
            assert_eq!(damaged[0], damaged[1]);
        }
        fs::write(
            dir.path().join("copy/journal.db-wal"),
            b"of an earlier copy",
        )
        .unwrap();
        let again = Backup::of(dir.path(), dir.path().join("copy")).unwrap();
        again.restore(dir.path()).unwrap();
        assert!(!dir.path().join("journal.db-wal").exists());
        assert_eq!(
            damage(
                &dir.path().join("absent"),
                Damage {
                    flips: true,
                    seed: 1
                }
            )
            .unwrap(),
            None
        );
    }
}
