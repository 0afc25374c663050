//! `cargo run -p imagebuild --example image mini|debian OUTPUT CACHE`: builds an image and says what it is.

fn main() -> base::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [recipe, output, cache] = arguments.as_slice() else {
        return Err(base::Error::bad_request("usage: image mini|debian OUTPUT CACHE"));
    };
    let options = imagebuild::Options::new(output, cache);
    let tell = |p: &imagebuild::Progress| println!("[{}/{}] {}", p.done + 1, p.total, p.step);
    let report = match recipe.as_str() {
        "debian" => imagebuild::build_debian(&options, &tell)?,
        _ => imagebuild::build_mini(&options, &tell)?,
    };
    println!("{report:#?}");
    Ok(())
}
