//! What drivers that are written in Rust have in common: connections, commands and texts.

use std::{
    collections::HashMap,
    fmt::Display,
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    rc::Rc,
    time::Duration,
};

/// An object in an actor.
pub trait Object {
    /// Calls a method; see `PROTOCOL.md`.
    ///
    /// # Errors
    ///
    /// The kind of an error that is among what is to happen.
    fn call(&self, method: &str, arguments: &[&str]) -> Answer;
}

impl<T: Object + ?Sized> Object for Rc<T> {
    fn call(&self, method: &str, arguments: &[&str]) -> Answer {
        (**self).call(method, arguments)
    }
}

/// What a method answers: a result, or the kind of an error.
pub type Answer = Result<String, &'static str>;

/// The objects of an actor by their names.
pub type Objects = HashMap<String, Box<dyn Object>>;

/// Connects to the suite as the actor `name`.
///
/// # Errors
///
/// The suite is gone.
pub fn connect(socket: &Path, name: &str) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "hello {name} {}", std::process::id())?;
    Ok(stream)
}

/// Answers commands until the connection is closed.
///
/// # Errors
///
/// The connection fails.
pub fn serve(stream: UnixStream, mut answer: impl FnMut(&[&str]) -> Answer) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while lines.read_line(&mut line)? != 0 {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let answered = match answer(&words) {
            Ok(result) => format!("ok {result}\n"),
            Err(kind) => format!("error {kind}\n"),
        };
        lines.get_mut().write_all(answered.as_bytes())?;
        line.clear();
    }
    Ok(())
}

/// Calls the method of an object.
///
/// # Errors
///
/// What the object answers, or that the driver has no such object.
pub fn call(objects: &Objects, words: &[&str]) -> Answer {
    match words {
        [name, method, arguments @ ..] => objects.get(*name).ok_or("no such object")?.call(method, arguments),
        _ => unknown(words),
    }
}

/// The answer to what is no command.
///
/// # Errors
///
/// Always.
pub fn unknown(words: &[&str]) -> Answer {
    eprintln!("the driver does not know: {}", words.join(" "));
    Err("unknown command")
}

/// An answer without a result.
pub const DONE: Answer = Ok(String::new());

/// A result.
///
/// # Errors
///
/// Never.
pub fn told(result: impl Display) -> Answer {
    Ok(result.to_string())
}

/// A number among the arguments.
///
/// # Panics
///
/// If it is none.
pub fn number(text: &str) -> u32 {
    text.parse().unwrap_or_else(|_| panic!("{text} is not a number"))
}

/// Seconds among the arguments.
///
/// # Panics
///
/// If they are none.
pub fn seconds(text: &str) -> Duration {
    Duration::from_secs_f64(text.parse().unwrap_or_else(|_| panic!("{text} is not a number of seconds")))
}

/// The text that an argument stands for.
pub fn expanded(text: &str) -> String {
    match text.split_once('*') {
        Some((letter, count)) => letter.repeat(number(count) as usize),
        None => text.to_owned(),
    }
}

/// What stands for a text in an answer.
pub fn shortened(text: &str) -> String {
    let first = text.get(..1).unwrap_or_default();
    let length = text.len();
    if length > 100 && text.bytes().all(|byte| first.as_bytes() == [byte]) {
        format!("{first}*{length}")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_shortened() {
        assert_eq!(shortened(&expanded("x*1000")), "x*1000");
        assert_eq!(shortened("short"), "short");
        let mixed = format!("{}y", "x".repeat(200));
        assert_eq!(shortened(&mixed), mixed);
    }
}
