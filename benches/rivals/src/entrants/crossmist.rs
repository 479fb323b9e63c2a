//! crossmist, in a program of its own (`src/bin/crossmist.rs`), as it wants to have `main` for itself.

use std::{process::Command, time::Duration};

use crate::{Outcome, workload::Entrant};

fn run(workload: &str, count: u64) -> Outcome<Duration> {
    let program = std::env::current_exe()?.with_file_name("crossmist");
    let output = Command::new(program).args([workload, &count.to_string()]).output()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    if output.status.success() {
        return Ok(Duration::from_secs_f64(text(output.stdout).parse()?));
    }
    let lines = text(output.stderr);
    // A panic says where, and in the next line what.
    let mut said = lines.lines().skip_while(|line| !line.contains("panicked"));
    Err(said.nth(1).map_or(lines.clone(), |what| format!("it panics: {what}")).into())
}

macro_rules! entrants {
    ($($function:ident: $workload:literal),*) => {$(
        pub fn $function() -> Entrant {
            Entrant::alone("crossmist", |count| run($workload, count))
        }
    )*};
}

entrants! { u64: "u64", large: "large", round_trip: "round-trip", start: "start" }
