//! Tutorial d in Rust: a process, a queue, a pipe, and `fork`.
//!
//!     cargo run --release --example tutorial_d                    # all programs, one after another
//!     cargo run --release --example tutorial_d -- d04_pipe        # one of them

mod programs;

fn main() -> programs::Outcome {
    procession::init();
    programs::run(&[
        ("d01_process", d01_process::main),
        ("d02_process_subclass", d02_process_subclass::main),
        ("d03_queue", d03_queue::main),
        ("d04_pipe", d04_pipe::main),
        ("d05_os_fork", d05_os_fork::main),
    ])
}

mod d01_process {
    use crate::programs::Outcome;
    use procession::Process;

    fn worker() {
        println!("This is a worker.");
    }

    pub fn main() -> Outcome {
        let process = Process::spawn(worker, ())?;
        process.join()?;
        println!("Done.");
        Ok(())
    }
}

mod d02_process_subclass {
    use crate::programs::Outcome;
    use procession::Process;
    use serde::{Deserialize, Serialize};

    // Where Python derives a class from Process, Rust sends a value, and has one of its methods run.
    #[derive(Serialize, Deserialize)]
    struct MyProcess {
        text: String,
    }

    impl MyProcess {
        fn run(self) {
            println!("{}", self.text);
        }
    }

    pub fn main() -> Outcome {
        let worker = MyProcess { text: "This is a worker.".to_owned() };
        let process = Process::spawn(MyProcess::run, (worker,))?;
        process.join()?;
        println!("Done.");
        Ok(())
    }
}

mod d03_queue {
    use crate::programs::Outcome;
    use procession::{Process, Queue};

    fn worker(queue: Queue<String>) {
        let data = queue.get().unwrap();
        println!("Receive data: {data}");
    }

    pub fn main() -> Outcome {
        let queue = Queue::new()?;
        queue.put("hello".to_owned())?;
        // The clone is another handle to the same queue. It goes to the other process as an argument.
        let process = Process::spawn(worker, (queue.clone(),))?;
        process.join()?;
        println!("Done.");
        Ok(())
    }
}

mod d04_pipe {
    use crate::programs::Outcome;
    use procession::{Connection, Process, pipe};

    // An end of a pipe has two types: what it sends and what it receives. This one sends numbers, if it likes to.
    fn worker(connection: Connection<u32, String>) {
        let data = connection.recv().unwrap();
        println!("Receive data: {data}");
    }

    pub fn main() -> Outcome {
        let (ours, theirs) = pipe()?;
        ours.send(&"hello".to_owned())?;
        let process = Process::spawn(worker, (theirs,))?;
        process.join()?;
        println!("Done.");
        Ok(())
    }
}

#[allow(unsafe_code, reason = "fork")]
mod d05_os_fork {
    use crate::programs::Outcome;
    use procession::process;

    fn worker() {
        println!("This is a worker.");
    }

    pub fn main() -> Outcome {
        // SAFETY: nothing is open that the two could get into each other's way with. (That no other thread runs, it sees to
        // itself.)
        let child = unsafe { process::fork(worker) }?;
        child.join()?;
        println!("Done.");
        Ok(())
    }
}
