//! The figures as a table.

use crate::workload::{Target, Unit, Workload};

/// Two runs of the same thing differ by a few per cent.
const NOT_SLOWER: f64 = 0.95;

/// Prints the seconds that each entrant took in each round; says how many targets were missed.
pub fn print(workload: &Workload, figures: &[Result<Vec<f64>, String>]) -> usize {
    println!("\n{} ({})", workload.title, name(workload.unit));
    let ours = figures[0].as_ref().ok().and_then(|seconds| median(seconds));
    for (entrant, figures) in workload.entrants.iter().zip(figures) {
        match figures {
            Err(reason) => println!("  {:32} failed: {reason}", entrant.name),
            Ok(seconds) => {
                let Some(middle) = median(seconds) else { continue };
                let figure = in_unit(workload.unit, middle);
                let mut all: Vec<f64> = seconds.iter().map(|&seconds| in_unit(workload.unit, seconds)).collect();
                all.sort_by(f64::total_cmp);
                let range = format!("({} to {})", number(all[0]), number(all[all.len() - 1]));
                let ratio = ours.map_or(String::new(), |ours| format!("{:.2}", middle / ours));
                println!("  {:32} {:>12} {range:>28} {ratio:>8}", entrant.name, number(figure));
            }
        }
    }
    let missed = workload.targets.iter().filter(|&&target| !check(workload, figures, ours, target));
    missed.count()
}

/// Prints whether a target was met.
fn check(workload: &Workload, figures: &[Result<Vec<f64>, String>], ours: Option<f64>, target: Target) -> bool {
    let (wanted, figure, met) = match target {
        Target::Times(times, rival) => {
            let place = workload.entrants.iter().position(|entrant| entrant.name == rival);
            let theirs = place.and_then(|place| median(figures[place].as_ref().ok()?));
            let ratio = ours.zip(theirs).map(|(ours, theirs)| theirs / ours);
            let needed = if times <= 1.0 { times * NOT_SLOWER } else { times };
            let wanted = if times <= 1.0 { format!("no slower than {rival}") } else { format!(">= {times}x {rival}") };
            (wanted, ratio.map(|ratio| format!("{ratio:.2}x")), ratio.is_some_and(|ratio| ratio >= needed))
        }
        Target::AtLeast(least) => {
            let figure = ours.map(|ours| in_unit(workload.unit, ours));
            let wanted = format!(">= {} {}", number(least), name(workload.unit));
            (wanted, figure.map(number), figure.is_some_and(|figure| figure >= least))
        }
    };
    let figure = figure.unwrap_or_else(|| "no figure".to_owned());
    println!("  target {wanted}: {figure}, {}", if met { "met" } else { "missed" });
    met
}

fn name(unit: Unit) -> &'static str {
    match unit {
        Unit::PerSecond => "messages/s",
        Unit::Gigabytes(_) => "GB/s",
        Unit::Microseconds => "us",
        Unit::Milliseconds => "ms",
    }
}

fn in_unit(unit: Unit, seconds: f64) -> f64 {
    match unit {
        Unit::PerSecond => 1.0 / seconds,
        Unit::Gigabytes(bytes) => bytes as f64 / seconds / 1e9,
        Unit::Microseconds => seconds * 1e6,
        Unit::Milliseconds => seconds * 1e3,
    }
}

fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// Three figures, and large numbers in full.
fn number(value: f64) -> String {
    if value >= 1000.0 {
        let digits = format!("{value:.0}");
        let first = digits.len() % 3;
        let mut parts = vec![&digits[..first]];
        parts.extend((first..digits.len()).step_by(3).map(|at| &digits[at..at + 3]));
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(",")
    } else if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}
