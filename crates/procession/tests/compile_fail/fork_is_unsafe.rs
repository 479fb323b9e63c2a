fn main() {
    procession::process::fork(|| 5).unwrap();
}
