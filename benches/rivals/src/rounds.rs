//! Running the measurements, each in a process of its own.

use std::{
    io::Read,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::{
    Outcome, table,
    workload::{self, Entrant, Workload},
};

const HELP: &str = "rivals [--quick] [--rounds N] [--only TEXT]... [--check] [--list]

--quick      less work, one round
--rounds N   rounds of each workload (5)
--only TEXT  workloads with this in their name
--check      exit with an error if a target was missed
--list       list the workloads";

/// How long a measurement may take.
const LIMIT: Duration = Duration::from_mins(1);

struct Options {
    quick: bool,
    rounds: usize,
    only: Vec<String>,
    check: bool,
    list: bool,
}

impl Options {
    /// `None` if they are not understood.
    fn new(words: &[&str]) -> Option<Self> {
        let mut options = Self { quick: false, rounds: 0, only: Vec::new(), check: false, list: false };
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            match word {
                "--quick" => options.quick = true,
                "--check" => options.check = true,
                "--list" => options.list = true,
                "--rounds" => options.rounds = words.next()?.parse().ok()?,
                "--only" => options.only.push((*words.next()?).to_owned()),
                _ => return None,
            }
        }
        if options.rounds == 0 {
            options.rounds = if options.quick { 1 } else { 5 };
        }
        Some(options)
    }

    fn wants(&self, workload: &Workload) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| workload.name.contains(text.as_str()))
    }
}

pub fn all(words: &[&str]) -> Outcome<()> {
    let options = Options::new(words).ok_or(HELP)?;
    let chosen: Vec<_> = workload::all().into_iter().filter(|workload| options.wants(workload)).collect();
    if options.list {
        for workload in &chosen {
            println!("{:12} {}", workload.name, workload.title);
        }
        return Ok(());
    }
    let cores = std::thread::available_parallelism()?;
    println!("{cores} cores, medians of {} rounds (lowest to highest)", options.rounds);
    let mut missed = 0;
    for workload in &chosen {
        let count = if options.quick { workload.quick } else { workload.count };
        missed += table::print(workload, &compare(workload, count, options.rounds));
    }
    if options.check && missed > 0 { Err(format!("{missed} targets missed").into()) } else { Ok(()) }
}

/// The seconds that one of the pieces of work took for each entrant in each round, or why there is no figure.
fn compare(workload: &Workload, count: u64, rounds: usize) -> Vec<Result<Vec<f64>, String>> {
    let mut figures: Vec<Result<Vec<f64>, String>> = workload.entrants.iter().map(|_| Ok(Vec::new())).collect();
    for round in 0..rounds {
        // Who comes first changes from round to round.
        for turn in 0..workload.entrants.len() {
            let number = (round + turn) % workload.entrants.len();
            if let Ok(seconds) = &mut figures[number] {
                match measure(workload, &workload.entrants[number], count) {
                    Ok(all) => seconds.push(all / count as f64),
                    Err(error) => figures[number] = Err(error.to_string()),
                }
            }
        }
    }
    figures
}

fn measure(workload: &Workload, entrant: &Entrant, count: u64) -> Outcome<f64> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["measure", workload.name, entrant.name, &count.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if began.elapsed() > LIMIT {
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // Its peers, should it have left any.
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    child.wait()?;
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().ok_or("no pipe")?.read_to_string(&mut out)?;
    child.stderr.take().ok_or("no pipe")?.read_to_string(&mut err)?;
    match status {
        None => Err(format!("no end in {} s", LIMIT.as_secs()).into()),
        Some(status) if status.success() => Ok(out.trim().parse()?),
        Some(status) => Err(err.lines().find(|line| !line.is_empty()).map_or(status.to_string(), str::to_owned).into()),
    }
}
