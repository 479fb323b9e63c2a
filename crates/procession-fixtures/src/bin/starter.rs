//! A program that starts a process, of the program that its arguments name, if there are any. It tells what became of it.

use procession::Process;

fn main() {
    // What stands here runs in each child, too.
    eprintln!("main begins");
    procession::init();
    eprintln!("main goes on");
    let mut arguments = std::env::args().skip(1);
    if let Some(program) = arguments.next() {
        procession::set_executable(program, arguments);
    }
    match Process::spawn(|n: u32| n + 1, (41,)) {
        Ok(child) => match child.join() {
            Ok(result) => println!("result: {result}"),
            Err(error) => println!("join: {error}"),
        },
        Err(error) => println!("start: {error}"),
    }
}
