//! The index folder, damaged in every way: the cache opens, and knows all that it knew.

use rollcall_agent_core::effect::DurableState;
use rollcall_shared::assignment::Assignment;
use rollcall_shared::ids::Generation;

use super::*;

struct Before {
    dir: tempfile::TempDir,
    versions: Vec<VersionRef>,
    state: DurableState,
}

/// A cache with two versions and a state, closed properly.
fn before() -> Before {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let versions = vec![
        fetch(&cache, &made("m", 1, 300, None), at(1)),
        fetch(&cache, &made("m", 2, 300, Some(b"more")), at(2)),
    ];
    let model = ModelName::new("m").unwrap();
    let assignment = Assignment {
        model: model.clone(),
        generation: Generation(7),
        stable: Some(versions[0]),
        previous: None,
        candidate: None,
    };
    let state = DurableState {
        assignments: BTreeMap::from([(model, assignment)]),
        ..DurableState::default()
    };
    for _ in 0..20 {
        cache.state_store().save(&state).unwrap();
        cache.touch(versions[0], at(3));
    }
    drop(cache);
    Before {
        dir,
        versions,
        state,
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Damages a copy, and checks that nothing of worth is lost. Whether the index was set aside.
fn survives(before: &Before, what: &str, damage: impl FnOnce(&Path)) -> bool {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(before.dir.path(), copy.path());
    damage(copy.path());
    for round in ["first", "second"] {
        let cache = open(copy.path());
        let found: Vec<VersionRef> = cache.list().iter().map(|entry| entry.version).collect();
        assert_eq!(found, before.versions, "{what}, {round} start");
        assert_eq!(
            cache.state_store().load().unwrap(),
            before.state,
            "{what}, {round} start"
        );
        for version in &before.versions {
            cache.verify(*version, at(9)).unwrap();
        }
        cache.touch(before.versions[0], at(9));
    }
    let cache = open(copy.path());
    assert_eq!(
        cache.list()[0].last_used,
        at(9),
        "{what}: the index works again"
    );
    std::fs::read_dir(copy.path()).unwrap().any(|e| {
        e.unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .starts_with("index.damaged-")
    })
}

#[test]
fn a_healthy_index_is_not_set_aside() {
    assert!(!survives(&before(), "nothing", |_| {}));
}

#[test]
fn a_missing_index_is_made_again() {
    survives(&before(), "missing", |dir| {
        std::fs::remove_dir_all(dir.join("index")).unwrap()
    });
}

#[test]
fn flipped_bytes_in_every_file_of_the_index_lose_nothing() {
    let before = before();
    let index = before.dir.path().join("index");
    let mut set_aside = 0;
    for file in files_below(&index) {
        let relative = file.strip_prefix(before.dir.path()).unwrap().to_owned();
        let bytes = std::fs::read(&file).unwrap();
        // Everything that was written, and some of the empty rest.
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        let step = (used / 40).max(1);
        let places = (0..used)
            .step_by(step)
            .chain((used..bytes.len()).step_by(100_000));
        for place in places {
            let what = format!("{} at {place}", relative.display());
            let was_set_aside = survives(&before, &what, |dir| {
                let mut bytes = bytes.clone();
                bytes[place] ^= 0x5a;
                std::fs::write(dir.join(&relative), bytes).unwrap();
            });
            set_aside += usize::from(was_set_aside);
        }
    }
    assert!(set_aside > 0, "no damage was noticed");
}

#[test]
fn cut_and_emptied_and_overwritten_files_of_the_index_lose_nothing() {
    let before = before();
    let index = before.dir.path().join("index");
    for file in files_below(&index) {
        let relative = file.strip_prefix(before.dir.path()).unwrap().to_owned();
        let bytes = std::fs::read(&file).unwrap();
        for tenth in 0..10 {
            let length = bytes.len() * tenth / 10;
            let what = format!("{} cut to {length}", relative.display());
            survives(&before, &what, |dir| {
                std::fs::write(dir.join(&relative), &bytes[..length]).unwrap();
            });
        }
        for filler in [0_u8, 0xff] {
            let what = format!("{} filled with {filler}", relative.display());
            survives(&before, &what, |dir| {
                std::fs::write(dir.join(&relative), vec![filler; bytes.len()]).unwrap();
            });
        }
        let what = format!("{} is gone", relative.display());
        survives(&before, &what, |dir| {
            std::fs::remove_file(dir.join(&relative)).unwrap()
        });
    }
}

#[test]
fn an_index_whose_opening_ended_a_process_is_not_opened_again() {
    let set_aside = survives(&before(), "mark", |dir| {
        std::fs::write(dir.join("index.opening"), "").unwrap()
    });
    assert!(set_aside);
}

#[test]
fn a_file_where_the_index_should_be_is_set_aside() {
    survives(&before(), "a file", |dir| {
        std::fs::remove_dir_all(dir.join("index")).unwrap();
        std::fs::write(dir.join("index"), "not a folder").unwrap();
    });
}
