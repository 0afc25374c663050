//! The part of `allod probe` that is put into guests: small, static, needs nothing there.
//!
//! `serve` answers others of its kind; `matrix`, `throughput` and `bench` measure and print JSON, one line for each result.
//! What cannot be measured is said, never left out: a protocol that the guest does not let us speak is `skipped`, with why.
//!
//! Invariant: it only speaks to the addresses it is given, writes nothing but one file in the directory it is given, and
//! removes that.
//!
//! Start reading at [`run`].

mod bench;
mod reach;
mod serve;

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

/// How it is called.
pub const USAGE: &str = "usage: allod-probe-agent version
       allod-probe-agent serve PORT
       allod-probe-agent matrix PORT COUNT ADDRESS…
       allod-probe-agent throughput PORT SECONDS ADDRESS
       allod-probe-agent bench DIRECTORY";

/// A JSON object, written part by part.
#[derive(Default)]
pub(crate) struct Json(String);

impl Json {
    pub(crate) fn text(mut self, name: &str, value: &str) -> Self {
        let plain: String = value.chars().filter(|c| !c.is_control() && *c != '"' && *c != '\\').collect();
        let _ = write!(self.comma(), "\"{name}\":\"{plain}\"");
        self
    }

    pub(crate) fn number(mut self, name: &str, value: f64) -> Self {
        if value.is_finite() {
            let _ = write!(self.comma(), "\"{name}\":{value}");
        }
        self
    }

    pub(crate) fn object(mut self, name: &str, value: Json) -> Self {
        let _ = write!(self.comma(), "\"{name}\":{}", value.done());
        self
    }

    pub(crate) fn done(self) -> String {
        format!("{{{}}}", self.0)
    }

    fn comma(&mut self) -> &mut String {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        &mut self.0
    }
}

/// The middle of some durations, in microseconds.
pub(crate) fn median_us(mut all: Vec<Duration>) -> f64 {
    all.sort();
    let middle = all.get(all.len() / 2).copied();
    middle.map_or(f64::NAN, |d| d.as_secs_f64() * 1e6)
}

/// Does what the arguments say; the text to print.
pub fn run(arguments: &[String]) -> Result<String, String> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let port = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no port"));
    let address = |text: &&str| text.parse::<Ipv4Addr>().map_err(|_| format!("{text:?} is no IPv4 address"));
    match words.as_slice() {
        ["version"] => Ok(concat!("allod-probe-agent ", env!("CARGO_PKG_VERSION")).to_owned()),
        ["serve", at] => serve::serve(port(at)?).map_err(|e| e.to_string()),
        ["matrix", at, count, addresses @ ..] if !addresses.is_empty() => {
            let count = count.parse().ok().filter(|c| (1..=1000).contains(c));
            let count = count.ok_or_else(|| "COUNT is a number from 1 to 1000".to_owned())?;
            let addresses: Vec<Ipv4Addr> = addresses.iter().map(address).collect::<Result<_, _>>()?;
            Ok(reach::matrix(port(at)?, count, &addresses))
        }
        ["throughput", at, seconds, to] => {
            let seconds = seconds.parse().ok().filter(|s| (1..=600).contains(s));
            let seconds = seconds.ok_or_else(|| "SECONDS is a number from 1 to 600".to_owned())?;
            Ok(reach::throughput(port(at)?, Duration::from_secs(seconds), address(to)?))
        }
        ["bench", directory] => bench::bench(directory.as_ref()).map_err(|e| format!("{directory}: {e}")),
        _ => Err(USAGE.to_owned()),
    }
}
