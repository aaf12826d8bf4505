//! The main job, as a newcomer runs it.

use std::process::Command;

#[test]
fn the_demo_tells_the_whole_story_and_checks_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_rollcall-demo"))
        .output()
        .unwrap();
    let (told, complaint) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{told}\n{complaint}");
    for chapter in [
        "promoted: 2.0.0",
        "withdrew 3.0.0 by itself",
        "fenced by lease 1",
        "unbroken chain",
    ] {
        assert!(
            told.contains(chapter),
            "the story lacks {chapter:?}:\n{told}"
        );
    }
}
