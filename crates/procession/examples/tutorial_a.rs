//! Tutorial a in Rust: a pool of 25 processes and 100 tasks.
//!
//!     cargo run --release --example tutorial_a

mod programs;

fn main() -> programs::Outcome {
    // The first line of every program that starts processes. A started process runs the same program, and becomes here
    // what it was started for, instead of going on as the program.
    procession::init();
    programs::run(&[("a01_pool_100_tasks", a01_pool_100_tasks::main)])
}

mod a01_pool_100_tasks {
    use crate::programs::Outcome;
    use procession::Pool;
    use std::{process, thread::sleep, time::Duration};

    fn run(number: u32) {
        println!("threading number:{number} {}", process::id());
        sleep(Duration::from_secs(2));
    }

    pub fn main() -> Outcome {
        let pool = Pool::new(25)?;
        // Arguments are a tuple, as in Python. The results come later: what is here now are handles to them.
        let results: Vec<_> = (0..100).map(|i| pool.apply_async(run, (i,))).collect::<Result<_, _>>()?;
        pool.close();
        for result in results {
            result.get_timeout(Duration::from_secs(5))?;
        }
        Ok(())
    }
}
