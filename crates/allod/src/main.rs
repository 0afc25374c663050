//! allod: not built yet.
fn main() {}
