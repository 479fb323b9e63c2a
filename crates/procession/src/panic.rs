//! Panics of other processes.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    fmt,
    panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use serde::{Deserialize, Serialize};

/// A panic in another process: what it said, and where.
///
/// It was also printed there, as any panic is. Where panics abort (`panic = "abort"` in the profile), the other process
/// ends by a signal instead, and nothing of its panic can be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Panic {
    /// What it was called with. Empty if that was neither a text nor formatted as one.
    pub message: String,
    /// Where in the source, if that is known.
    pub location: Option<Location>,
    /// The name of the thread, if it has one.
    pub thread: Option<String>,
}

/// A place in a source file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Location {
    /// The file, as the compiler was told of it.
    pub file: String,
    /// Counted from one.
    pub line: u32,
    /// Counted from one.
    pub column: u32,
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("panicked")?;
        if let Some(location) = &self.location {
            write!(f, " at {location}")?;
        }
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    static NOTED: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

/// Calls `function`, and turns its panic into a value. The panic is printed as always.
///
/// It is the panic hook that knows where; one that the program has set is called all the same.
pub(crate) fn catch<R>(function: impl FnOnce() -> R) -> Result<R, Panic> {
    watch();
    let outer = CATCHING.replace(true);
    // One that the program has caught itself is nobody's business; one that is under way is that of the outer call.
    let under_way = NOTED.take().filter(|_| thread::panicking());
    // What it leaves behind half done is seen by nobody: its arguments were made for it.
    let result = catch_unwind(AssertUnwindSafe(function));
    CATCHING.set(outer);
    let noted = NOTED.replace(under_way);
    result.map_err(|payload| noted.unwrap_or_else(|| Panic { message: text(&*payload), location: None, thread: None }))
}

/// Puts the hook that notes panics in front of the present one, once. A thread that panics can't, and leaves it to another.
fn watch() {
    static WATCHING: AtomicBool = AtomicBool::new(false);
    if thread::panicking() || WATCHING.swap(true, Ordering::Relaxed) {
        return;
    }
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if CATCHING.get() {
            NOTED.set(Some(note(info)));
        }
        before(info);
    }));
}

fn note(info: &PanicHookInfo<'_>) -> Panic {
    let location = info.location().map(|location| Location {
        file: location.file().to_owned(),
        line: location.line(),
        column: location.column(),
    });
    Panic { message: text(info.payload()), location, thread: thread::current().name().map(str::to_owned) }
}

fn text(payload: &dyn Any) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_has_message_and_location() {
        let line = line!() + 1;
        let panic = catch(|| panic!("number {}", 7)).unwrap_err();
        assert_eq!(panic.message, "number 7");
        let location = panic.location.clone().unwrap();
        assert_eq!((location.line, location.file.ends_with("panic.rs")), (line, true));
        assert!(panic.to_string().ends_with(": number 7"), "{panic}");
    }

    #[test]
    fn others_are_left_alone_and_results_pass() {
        assert_eq!(catch(|| 5), Ok(5));
        // One inside the other: each has its own.
        let outer = catch(|| {
            assert_eq!(catch(|| panic!("inner")).unwrap_err().message, "inner");
            panic!("outer")
        });
        assert_eq!(outer.unwrap_err().message, "outer");
        // Not a panic that the hook hears of.
        let thrown = catch(|| std::panic::resume_unwind(Box::new("thrown"))).unwrap_err();
        assert_eq!((thrown.message.as_str(), thrown.location), ("thrown", None));
    }

    #[test]
    fn one_that_is_under_way_is_not_disturbed() {
        struct Catches;
        impl Drop for Catches {
            fn drop(&mut self) {
                assert_eq!(catch(|| 5), Ok(5));
                assert_eq!(catch(|| panic!("inner")).unwrap_err().message, "inner");
            }
        }
        // Be it the first one of the program, whose hook is not there as yet.
        let first = catch_unwind(|| {
            let _catches = Catches;
            panic!("first")
        });
        assert!(first.is_err());
        let line = line!() + 3;
        let panic = catch(|| {
            let _catches = Catches;
            panic!("outer")
        });
        let panic = panic.unwrap_err();
        assert_eq!((panic.message.as_str(), panic.location.unwrap().line), ("outer", line));
    }

    #[test]
    fn one_that_is_no_text_has_no_message() {
        let panic = catch(|| std::panic::panic_any(5_u8)).unwrap_err();
        assert_eq!(panic.message, "");
        assert!(panic.location.is_some());
    }
}
