use procession::Process;

fn add(a: u32, b: u32) -> u32 {
    a + b
}

fn main() {
    procession::init();
    let function: fn(u32, u32) -> u32 = add;
    let child = Process::spawn(function, (1, 2)).unwrap();
    println!("{}", child.join().unwrap());
}
