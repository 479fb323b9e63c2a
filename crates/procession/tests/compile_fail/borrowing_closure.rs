use procession::Process;

fn main() {
    procession::init();
    let names = vec!["a".to_string()];
    let child = Process::spawn(|n: usize| names[n].clone(), (0,)).unwrap();
    println!("{}", child.join().unwrap());
}
