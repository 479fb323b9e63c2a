//! The speed of procession beside that of the crates that a Rust program would use otherwise, on the same work.
//!
//!     rivals [--quick] [--rounds N] [--only TEXT]... [--check] [--list]
//!
//! Each measurement runs in a fresh process, which starts the processes it needs itself. All entrants of a workload take
//! turns in every round, so that what else the machine does falls on all of them. What is printed are medians over the
//! rounds.

mod channel;
mod entrants;
mod many;
mod peer;
mod rounds;
mod table;
mod workload;

/// Anything may fail here, and nothing is done about it but saying so.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() {
    // The processes that are started for functions go no further than here.
    procession::init();
    procspawn::init();
    if let Err(error) = run() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn run() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["measure", workload, entrant, count] => {
            let workload = workload::find(workload)?;
            let entrant = workload.entrant(entrant)?;
            println!("{}", (entrant.measure)(count.parse()?)?.as_secs_f64());
            Ok(())
        }
        ["peer", workload, entrant, argument, descriptors] => {
            let workload = workload::find(workload)?;
            let entrant = workload.entrant(entrant)?;
            (entrant.peer)(peer::Orders::new(argument, descriptors)?)
        }
        _ => rounds::all(&words),
    }
}
