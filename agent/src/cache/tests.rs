use std::time::Duration;

use super::*;
use crate::engine::fixture::{BUNDLES, Bundle, public_key, signature};
use rollcall_shared::manifest::ManifestError;
use rollcall_shared::signing::SigningKey;
use rollcall_shared::version::Version;

const QUOTA: u64 = 1 << 30;

fn open(dir: &Path) -> Cache {
    Cache::open(dir, QUOTA, public_key()).unwrap()
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_secs(seconds)
}

fn fetch(cache: &Cache, bundle: &Bundle, now: Timestamp) -> VersionRef {
    let version = cache.add_version(&bundle.signed(), now).unwrap();
    for file in cache.missing(&bundle.manifest) {
        let index = bundle
            .manifest
            .files
            .iter()
            .position(|f| *f == file)
            .unwrap();
        let mut blob = cache.begin_blob(file.digest, file.size).unwrap();
        let from = usize::try_from(blob.offset()).unwrap();
        blob.write(&bundle.files[index][from..]).unwrap();
        blob.finish().unwrap();
    }
    cache.verify(version, now).unwrap();
    version
}

/// A version of so many bytes; `shared` is a second file that others may have too.
fn made(model: &str, major: u64, bytes: usize, shared: Option<&[u8]>) -> Bundle {
    let mut files = vec![("model.onnx", vec![major as u8; bytes])];
    files.extend(shared.map(|shared| ("shared.bin", shared.to_vec())));
    Bundle::of(model, Version::new(major, 0, 0), signature(1, 1), &files)
}

#[test]
fn all_bundles_are_stored_found_and_still_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut versions = Vec::new();
    {
        let cache = open(dir.path());
        for (n, (model, version, ..)) in BUNDLES.into_iter().enumerate() {
            versions.push(fetch(&cache, &Bundle::real(model, version), at(n as u64)));
        }
    }
    let cache = open(dir.path());
    assert_eq!(cache.list().len(), 7);
    for (n, version) in versions.into_iter().enumerate() {
        let manifest = cache.manifest(version).unwrap();
        assert!(cache.missing(&manifest).is_empty());
        assert!(cache.path_of(&manifest.files[0].digest).is_some());
        let entry = cache
            .list()
            .into_iter()
            .find(|entry| entry.version == version)
            .unwrap();
        assert_eq!(entry.last_used, at(n as u64));
        assert_eq!(entry.verified_at, Some(at(n as u64)));
        assert_eq!(entry.bytes_missing, 0);
    }
}

#[test]
fn a_second_agent_in_the_folder_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let Err(error) = Cache::open(dir.path(), QUOTA, public_key()) else {
        panic!("opened twice")
    };
    assert!(
        error.to_string().contains("another rollcall-agent uses"),
        "{error}"
    );
    drop(first);
    open(dir.path());
}

#[test]
fn a_folder_is_in_use_until_its_state_store_is_gone_too() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let (store, closed) = (cache.state_store(), cache.closed());
    drop(cache);
    assert!(!closed.is_cancelled());
    assert!(matches!(
        Cache::open(dir.path(), QUOTA, public_key()),
        Err(CacheError::InUse { .. })
    ));
    drop(store);
    assert!(closed.is_cancelled());
    open(dir.path());
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the first tries must have failed"
)]
fn an_index_that_sled_lets_go_of_late_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let version = fetch(&open(dir.path()), &made("m", 1, 300, None), at(7));
    let db = dir.path().join("index/db");
    let straggler = File::options().write(true).open(db).unwrap();
    straggler.lock().unwrap();
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| open(dir.path()));
        std::thread::sleep(Duration::from_millis(50));
        drop(straggler);
        let entry = opening.join().unwrap().list().remove(0);
        assert_eq!((entry.version, entry.last_used), (version, at(7)));
    });
}

#[test]
fn a_killed_fetch_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = Bundle::real("digits", "4.0.0");
    let model = bundle.manifest.files[0].clone();
    let half = bundle.files[0].len() / 2;
    {
        let cache = open(dir.path());
        cache.add_version(&bundle.signed(), at(1)).unwrap();
        let mut blob = cache.begin_blob(model.digest, model.size).unwrap();
        blob.write(&bundle.files[0][..half]).unwrap();
    }
    let cache = open(dir.path());
    assert_eq!(cache.missing(&bundle.manifest).len(), 2);
    let blob = cache.begin_blob(model.digest, model.size).unwrap();
    assert_eq!(
        blob.offset(),
        half as u64,
        "opening the cache did not sweep it away"
    );
    drop(blob);
    fetch(&cache, &bundle, at(2));
}

#[test]
fn damaged_files_are_named_removed_and_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let bundle = Bundle::real("digits", "1.0.0");
    let version = fetch(&cache, &bundle, at(1));
    let path = cache.path_of(&bundle.manifest.files[0].digest).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3_000] ^= 0x10;
    std::fs::write(&path, bytes).unwrap();
    let error = cache.verify(version, at(2)).unwrap_err();
    assert!(
        error.to_string().starts_with("digits@1.0.0: model.onnx ("),
        "{error}"
    );
    assert!(error.is_retryable());
    assert_eq!(cache.list()[0].verified_at, None);
    let missing = cache.missing(&bundle.manifest);
    assert_eq!(missing, [bundle.manifest.files[0].clone()]);
    fetch(&cache, &bundle, at(3));
}

#[test]
fn a_manifest_that_the_registry_did_not_sign_or_that_was_changed_is_no_version() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = Bundle::real("wine", "1.0.0");
    let foreign = SignedManifest::sign(&bundle.manifest, &SigningKey::from_seed(&[9; 32])).unwrap();
    let version = {
        let cache = open(dir.path());
        let error = cache.add_version(&foreign, at(1)).unwrap_err();
        assert!(
            matches!(error, CacheError::Manifest(ManifestError::BadSignature)),
            "{error}"
        );
        assert!(!error.is_retryable());
        let version = fetch(&cache, &bundle, at(1));
        let path = cache.manifest_path(&version.digest);
        let text = std::fs::read_to_string(&path)
            .unwrap()
            .replace("1.0.0", "1.0.1");
        std::fs::write(&path, text).unwrap();
        let error = cache.manifest(version).unwrap_err();
        assert!(
            matches!(error, CacheError::DamagedManifest { .. }),
            "{error}"
        );
        version
    };
    let cache = open(dir.path());
    assert!(matches!(
        cache.manifest(version),
        Err(CacheError::Unknown { .. })
    ));
    assert!(cache.list().is_empty());
    assert_eq!(cache.bytes(), 0);
}

#[test]
fn the_least_recently_used_versions_go_and_pinned_ones_never_do() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 1_000, public_key()).unwrap();
    let name = |n: u64| (ModelName::new("m").unwrap(), n);
    let versions: Vec<VersionRef> = (1..=3)
        .map(|n| fetch(&cache, &made("m", n, 300, None), at(n)))
        .collect();
    assert!(cache.make_room(100).unwrap().is_empty(), "there is room");
    assert!(cache.make_room(200).is_err(), "nobody said what may go");
    let pinned = BTreeSet::from([(name(1).0, versions[0])]);
    cache.set_pins(pinned);
    cache.touch(versions[1], at(9));
    assert_eq!(cache.make_room(200).unwrap(), [(name(3).0, versions[2])]);
    assert_eq!(cache.bytes(), 600);
    assert!(cache.make_room(701).is_err());
    assert_eq!(cache.bytes(), 600, "nothing went in vain");
    assert_eq!(cache.make_room(700).unwrap(), [(name(2).0, versions[1])]);
    assert_eq!(cache.list().len(), 1);
    cache.verify(versions[0], at(10)).unwrap();
    drop(cache);
    assert_eq!(open(dir.path()).list().len(), 1);
}

#[test]
fn a_blob_of_two_versions_goes_with_the_last_of_them_and_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 1_000, public_key()).unwrap();
    let shared = [7; 500];
    let old = made("m", 1, 100, Some(&shared));
    let new = made("m", 2, 100, Some(&shared));
    fetch(&cache, &old, at(1));
    let new_ref = fetch(&cache, &new, at(2));
    assert_eq!(cache.bytes(), 700);
    cache.set_pins(BTreeSet::new());
    assert_eq!(cache.make_room(400).unwrap().len(), 1);
    assert_eq!(cache.bytes(), 600);
    cache.verify(new_ref, at(3)).unwrap();
    assert_eq!(cache.make_room(900).unwrap().len(), 1);
    assert_eq!(cache.bytes(), 0);
}

#[test]
fn what_no_version_has_is_swept_away() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let bundle = Bundle::real("digits", "1.0.0");
    fetch(&cache, &bundle, at(1));
    let before = cache.bytes();
    let stray = Digest::of(b"stray");
    let mut blob = cache.begin_blob(stray, 5).unwrap();
    blob.write(b"stray").unwrap();
    blob.finish().unwrap();
    assert_eq!(cache.gc().unwrap(), 5);
    assert_eq!(cache.path_of(&stray), None);
    assert_eq!(cache.bytes(), before);
}

mod damage;
