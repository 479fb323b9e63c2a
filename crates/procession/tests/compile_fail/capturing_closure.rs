use procession::Process;

fn main() {
    procession::init();
    let factor = 3;
    let child = Process::spawn(move |n: u32| n * factor, (14,)).unwrap();
    println!("{}", child.join().unwrap());
}
