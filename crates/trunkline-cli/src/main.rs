//! trunkline
fn main() {}
