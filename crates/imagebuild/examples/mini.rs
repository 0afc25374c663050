//! `cargo run -p imagebuild --example mini OUTPUT CACHE`: builds the mini image and says what it is.

fn main() -> base::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(output), Some(cache)) = (arguments.next(), arguments.next()) else {
        return Err(base::Error::bad_request("usage: mini OUTPUT CACHE"));
    };
    let report = imagebuild::build_mini(&imagebuild::Options::new(output, cache), &|p| {
        println!("[{}/{}] {}", p.done + 1, p.total, p.step);
    })?;
    println!("{report:#?}");
    Ok(())
}
