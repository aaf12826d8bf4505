use super::*;

fn content(length: usize) -> (Vec<u8>, Digest) {
    let bytes: Vec<u8> = (0..length).map(|i| (i * 31 % 251) as u8).collect();
    let digest = Digest::of(&bytes);
    (bytes, digest)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_blob_that_was_cut_off_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, digest) = content(1_000_000);
    let half = bytes.len() / 2;
    {
        let blobs = Blobs::open(dir.path()).unwrap();
        let mut partial = blobs.begin(digest, bytes.len() as u64).unwrap();
        assert_eq!(partial.offset(), 0);
        partial.write(&bytes[..half]).unwrap();
        // The process dies here.
    }
    let blobs = Blobs::open(dir.path()).unwrap();
    assert_eq!(blobs.size(&digest), None);
    let mut partial = blobs.begin(digest, bytes.len() as u64).unwrap();
    assert_eq!(partial.offset(), half as u64);
    for chunk in bytes[half..].chunks(70_001) {
        partial.write(chunk).unwrap();
    }
    let path = partial.finish().unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bytes);
    assert!(names(&blobs.partial).is_empty());
    blobs.verify(&digest, bytes.len() as u64).unwrap();
}

#[test]
fn a_beginning_that_was_spoiled_is_found_out_at_the_end_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let (bytes, digest) = content(10_000);
    std::fs::write(blobs.partial.join(digest.to_string()), vec![0; 4_000]).unwrap();
    let mut partial = blobs.begin(digest, 10_000).unwrap();
    assert_eq!(partial.offset(), 4_000);
    partial.write(&bytes[4_000..]).unwrap();
    let error = partial.finish().unwrap_err();
    let text = error.to_string();
    let BlobError::WrongDigest { expected, got, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(expected, digest);
    assert!(
        text.contains(&digest.to_string()) && text.contains(&got.to_string()),
        "{text}"
    );
    assert!(names(&blobs.partial).is_empty() && names(&blobs.whole).is_empty());
    assert_eq!(blobs.begin(digest, 10_000).unwrap().offset(), 0);
}

#[test]
fn too_much_and_too_little_are_refused_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let (bytes, digest) = content(100);
    let mut partial = blobs.begin(digest, 99).unwrap();
    assert!(matches!(
        partial.write(&bytes),
        Err(BlobError::WrongSize {
            expected: 99,
            got: 100,
            ..
        })
    ));
    assert!(partial.write(&bytes[..10]).is_err(), "it takes no more");
    assert!(partial.finish().is_err());
    let mut partial = blobs.begin(digest, 101).unwrap();
    partial.write(&bytes).unwrap();
    assert!(matches!(
        partial.finish(),
        Err(BlobError::WrongSize {
            expected: 101,
            got: 100,
            ..
        })
    ));
    assert!(names(&blobs.partial).is_empty() && names(&blobs.whole).is_empty());
}

#[test]
fn a_partial_file_that_is_too_long_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let (bytes, digest) = content(100);
    std::fs::write(blobs.partial.join(digest.to_string()), vec![1; 200]).unwrap();
    let mut partial = blobs.begin(digest, 100).unwrap();
    assert_eq!(partial.offset(), 0);
    partial.write(&bytes).unwrap();
    partial.finish().unwrap();
}

#[test]
fn an_empty_blob_is_a_blob() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let (_, digest) = content(0);
    blobs.begin(digest, 0).unwrap().finish().unwrap();
    blobs.verify(&digest, 0).unwrap();
}

#[test]
fn a_full_disk_says_how_much_is_needed_and_leaves_no_partial_file() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let (bytes, digest) = content(5_000);
    let mut partial = blobs.begin(digest, 5_000).unwrap();
    partial.write(&bytes[..1_000]).unwrap();
    // The system's own "no space left on device".
    partial.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let error = partial.write(&bytes[1_000..]).unwrap_err();
    let BlobError::NoSpace { needed, free, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*needed, 4_000);
    assert!(*free > 0);
    assert!(
        error.to_string().contains("4000 more bytes are needed"),
        "{error}"
    );
    drop(partial);
    assert!(names(&blobs.partial).is_empty());
    let mut again = blobs.begin(digest, 5_000).unwrap();
    again.write(&bytes).unwrap();
    again.finish().unwrap();
}

#[test]
fn a_blob_larger_than_the_disk_is_refused_before_a_byte_comes() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let (_, digest) = content(1);
    let error = blobs.begin(digest, u64::MAX / 2).unwrap_err();
    assert!(matches!(error, BlobError::NoSpace { .. }), "{error}");
    assert!(names(&blobs.partial).is_empty());
}

#[test]
fn one_blob_has_one_writer_and_is_not_swept_away_from_under_it() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let (bytes, digest) = content(100);
    let mut partial = blobs.begin(digest, 100).unwrap();
    assert!(matches!(
        blobs.begin(digest, 100),
        Err(BlobError::Busy { .. })
    ));
    partial.write(&bytes[..50]).unwrap();
    assert_eq!(blobs.sweep(&BTreeSet::new()).unwrap(), 0);
    partial.write(&bytes[50..]).unwrap();
    partial.finish().unwrap();
    std::fs::write(blobs.whole.join("README"), "not ours").unwrap();
    assert_eq!(blobs.sweep(&BTreeSet::from([digest])).unwrap(), 0);
    assert_eq!(blobs.sweep(&BTreeSet::new()).unwrap(), 100);
    assert_eq!(names(&blobs.whole), ["README"]);
}

#[test]
fn damage_of_a_whole_blob_is_found_and_the_blob_removed() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let (bytes, digest) = content(1_000);
    let store = |bytes: &[u8]| std::fs::write(blobs.path(&digest), bytes).unwrap();
    let mut flipped = bytes.clone();
    flipped[500] ^= 1;
    store(&flipped);
    assert!(matches!(
        blobs.verify(&digest, 1_000),
        Err(BlobError::WrongDigest { .. })
    ));
    assert!(matches!(
        blobs.verify(&digest, 1_000),
        Err(BlobError::Missing { .. })
    ));
    store(&bytes[..999]);
    assert!(matches!(
        blobs.verify(&digest, 1_000),
        Err(BlobError::WrongSize { got: 999, .. })
    ));
    store(&bytes);
    blobs.verify(&digest, 1_000).unwrap();
}
