//! A program that would become a child, but of another build.

fn main() {
    procession::init();
    println!("nobody has invited this one");
}
