//! Files that are whole or absent, also after a power cut.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Something on the disk did not work.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl FileError {
    /// For `map_err`.
    pub(super) fn to(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self {
            action,
            path,
            source,
        }
    }

    /// What the system said.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// Ending of files that were being written when the process died.
pub(super) const UNFINISHED: &str = "unfinished";

/// Puts `bytes` in place of `path`: a file beside it, fsync, rename, fsync of the folder.
/// Returns when they are on the disk.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(UNFINISHED);
    let beside = PathBuf::from(name);
    let write = || -> io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    if let Err(source) = write() {
        // Half a file is of no use; on a full disk it is in the way.
        let _ = std::fs::remove_file(&beside);
        return Err(FileError {
            action: "write",
            path: path.to_owned(),
            source,
        });
    }
    std::fs::rename(&beside, path).map_err(FileError::to("replace", path))?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Makes renames and removals in `folder` last.
pub(super) fn sync_folder(folder: &Path) -> Result<(), FileError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(FileError::to("sync the folder", folder))
}

/// Removes a file; one that is not there is well removed.
pub(super) fn remove(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(FileError {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Set-aside copies of one thing that are kept. More: the oldest goes.
const SET_ASIDE_MAX: u32 = 3;

/// Renames `path` to the first free `{name}.damaged-{n}` beside it, for people to look
/// at, and removes the oldest beyond [`SET_ASIDE_MAX`].
pub(super) fn set_aside(path: &Path) -> Result<PathBuf, FileError> {
    let numbered = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{n}"));
        PathBuf::from(name)
    };
    let mut taken: Vec<u32> = damaged_numbers(path);
    taken.sort_unstable();
    let next = taken.last().map_or(1, |last| last.saturating_add(1));
    let aside = numbered(next);
    std::fs::rename(path, &aside).map_err(FileError::to("set aside", path))?;
    let kept = SET_ASIDE_MAX as usize - 1;
    for old in taken.iter().rev().skip(kept) {
        let old = numbered(*old);
        let _ = std::fs::remove_dir_all(&old).or_else(|_| std::fs::remove_file(&old));
    }
    Ok(aside)
}

fn damaged_numbers(path: &Path) -> Vec<u32> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return Vec::new();
    };
    let number = |entry: io::Result<std::fs::DirEntry>| {
        let found = entry.ok()?.file_name();
        found
            .to_str()?
            .strip_prefix(name)?
            .strip_prefix(".damaged-")?
            .parse()
            .ok()
    };
    std::fs::read_dir(folder)
        .map(|entries| entries.filter_map(number).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.bin");
        write_durably(&path, b"one").unwrap();
        write_durably(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_durably(&folder.path().join("no/such/folder"), b"x").is_err());
    }

    #[test]
    fn a_few_damaged_copies_are_kept_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        for n in 1..=5 {
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("content"), n.to_string()).unwrap();
            let aside = set_aside(&path).unwrap();
            assert!(aside.ends_with(format!("index.damaged-{n}")));
        }
        let mut left = damaged_numbers(&path);
        left.sort_unstable();
        assert_eq!(left, [3, 4, 5]);
    }
}
