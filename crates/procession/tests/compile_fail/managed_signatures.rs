struct Store(Vec<String>);

#[procession::managed]
impl Store {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    pub fn open(path: String) -> Option<Self> {
        Some(Self(vec![path]))
    }

    pub fn first(&self) -> &str {
        &self.0[0]
    }

    pub fn add(&mut self, text: &str) {
        self.0.push(text.into());
    }

    pub fn take(self) -> Vec<String> {
        self.0
    }

    pub fn generic<T: ToString>(&mut self, value: T) {
        self.0.push(value.to_string());
    }

    pub async fn later(&self) {}

    pub unsafe fn risky(&self) {}

    pub fn all(&self) -> impl Iterator<Item = String> {
        self.0.clone().into_iter()
    }
}

struct Wrapper<T>(T);

#[procession::managed]
impl<T> Wrapper<T> {}

#[procession::managed]
impl Clone for Store {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[procession::managed(names = "store")]
impl Store {}

fn main() {}
