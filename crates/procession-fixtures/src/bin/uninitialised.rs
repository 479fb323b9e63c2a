//! A program that starts a process without having called `init`. With an argument, it sets itself as the program to run,
//! also in its children.

use procession::{Process, StartMethod};

fn main() {
    println!("main runs");
    if let Some(program) = std::env::args().nth(1) {
        procession::set_executable(program, ["again"]);
    }
    for method in [StartMethod::Spawn, StartMethod::Forkserver] {
        match Process::builder().start_method(method).spawn(|| (), ()) {
            Ok(child) => println!("join: {:?}", child.join().map_err(|error| error.to_string())),
            Err(error) => println!("start: {error}"),
        }
    }
}
