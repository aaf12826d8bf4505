//! Runs other people's code so that a panic in it is an error and nothing else.
//!
//! Rust prints a panic through one process-wide hook before anything can catch it. A
//! model that panics on every tenth request would fill the log. So a hook is put in
//! front of the present one, once; it stays silent, and keeps the text, on a thread
//! that is inside [`catch`], and hands every other panic on unchanged.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

use rollcall_shared::limits::TEXT_BYTES_MAX;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static TEXT: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Runs `work`; a panic becomes its text.
///
/// Whatever `work` changes must be fit for use after a panic, or be dropped.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if INSIDE.get() {
                TEXT.set(Some(describe(info)));
            } else {
                previous(info);
            }
        }));
    });
    let outer = INSIDE.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    INSIDE.set(outer);
    result.map_err(|payload| {
        TEXT.take()
            .unwrap_or_else(|| payload_text(payload.as_ref()))
    })
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let text = payload_text(info.payload());
    match info.location() {
        Some(place) => cut(format!(
            "{text} ({}:{})",
            file_name(place.file()),
            place.line()
        )),
        None => cut(text),
    }
}

/// Build machines' folders say nothing to a reader.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn payload_text(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

/// Cuts a text to the bound for free texts.
pub(crate) fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX - 3));
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_text_and_place_and_the_thread_goes_on() {
        let text = catch(|| panic!("index {} out of bounds", 42)).unwrap_err();
        assert!(
            text.starts_with("index 42 out of bounds (panics.rs:"),
            "{text}"
        );
        assert_eq!(catch(|| 7), Ok(7));
        assert!(!INSIDE.get());
    }

    #[test]
    fn a_panic_elsewhere_keeps_its_hook() {
        catch(|| ()).unwrap();
        let outside = std::thread::spawn(|| {
            assert!(!INSIDE.get());
            std::panic::resume_unwind(Box::new("not ours"));
        });
        assert!(outside.join().is_err());
        assert!(TEXT.take().is_none());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert!(cut("ü".repeat(TEXT_BYTES_MAX)).len() <= TEXT_BYTES_MAX);
    }
}
