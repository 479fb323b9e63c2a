use procession::Pool;

fn main() {
    procession::init();
    let pool = Pool::new(2).unwrap();
    let factor = 3;
    println!("{:?}", pool.map(move |n: u32| n * factor, 0..10).unwrap());
}
