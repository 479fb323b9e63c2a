use procession::Process;

fn add(a: u32, b: u32) -> u32 {
    a + b
}

fn main() {
    procession::init();
    let child = Process::spawn(add, (1,)).unwrap();
    println!("{}", child.join().unwrap());
}
