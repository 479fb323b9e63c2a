//! What the tutorials share: running one of their programs, or all.

use std::{
    env,
    error::Error,
    fs,
    process::{Command, id},
};

pub type Outcome = Result<(), Box<dyn Error>>;

/// Its name, and its function `main`.
pub type Program = (&'static str, fn() -> Outcome);

/// Runs the program that the first argument names; without argument all of them, one after another.
pub fn run(programs: &[Program]) -> Outcome {
    let Some(wanted) = env::args().nth(1) else {
        for (name, _) in programs {
            println!("\n=== {name}");
            // As a program of its own: that its daemonic processes end with it is something to see.
            let status = Command::new(env::current_exe()?).arg(name).status()?;
            if !status.success() {
                return Err(format!("{name}: {status}").into());
            }
        }
        return Ok(());
    };
    let Some((_, program)) = programs.iter().find(|(name, _)| *name == wanted) else {
        let names: Vec<_> = programs.iter().map(|(name, _)| *name).collect();
        return Err(format!("there is no {wanted}; there are {}", names.join(", ")).into());
    };
    // They expect to be in a folder with a file that says how many tickets there are.
    let folder = env::temp_dir().join(format!("procession-{wanted}-{}", id()));
    fs::create_dir(&folder)?;
    env::set_current_dir(&folder)?;
    fs::write("data.txt", "30")?;
    let outcome = program();
    fs::remove_dir_all(&folder)?;
    outcome
}
