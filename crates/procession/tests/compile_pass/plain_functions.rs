//! What is allowed. That it is built, and not only checked, is what makes the compiler look into generic code in all of these
//! programs.

use procession::Process;

fn add(a: u32, b: u32) -> u32 {
    a + b
}

fn twice<T: procession::Message + Clone>(value: T) -> (T, T) {
    (value.clone(), value)
}

#[procession::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    assert_eq!(Process::spawn(add, (1, 2))?.join()?, 3);
    assert_eq!(Process::spawn(|n: u32| n + 1, (1,))?.join()?, 2);
    assert_eq!(Process::spawn(twice::<String>, ("x".into(),))?.join()?, ("x".into(), "x".into()));
    Ok(())
}
